//! Fuzz target of the decoder `table_file_name`.

#![no_main]

mainstay_fuzz::target!("table_file_name");
