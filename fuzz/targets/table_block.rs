//! Fuzz target of the decoder `table_block`.

#![no_main]

mainstay_fuzz::target!("table_block");
