//! Fuzz target of the decoder `log_cut_intent`.

#![no_main]

mainstay_fuzz::target!("log_cut_intent");
