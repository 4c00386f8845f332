//! Fuzz target of the decoder `log_cut_tail_name`.

#![no_main]

mainstay_fuzz::target!("log_cut_tail_name");
