//! Fuzz target of the decoder `table_times`.

#![no_main]

mainstay_fuzz::target!("table_times");
