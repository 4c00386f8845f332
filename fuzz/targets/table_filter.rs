//! Fuzz target of the decoder `table_filter`.

#![no_main]

mainstay_fuzz::target!("table_filter");
