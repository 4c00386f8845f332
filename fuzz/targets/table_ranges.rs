//! Fuzz target of the decoder `table_ranges`.

#![no_main]

mainstay_fuzz::target!("table_ranges");
