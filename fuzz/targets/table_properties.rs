//! Fuzz target of the decoder `table_properties`.

#![no_main]

mainstay_fuzz::target!("table_properties");
