//! Fuzz target of the decoder `table_frame`.

#![no_main]

mainstay_fuzz::target!("table_frame");
