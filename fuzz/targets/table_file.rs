//! Fuzz target of the decoder `table_file`.

#![no_main]

mainstay_fuzz::target!("table_file");
