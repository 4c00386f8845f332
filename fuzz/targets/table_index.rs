//! Fuzz target of the decoder `table_index`.

#![no_main]

mainstay_fuzz::target!("table_index");
