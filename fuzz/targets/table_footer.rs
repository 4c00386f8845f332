//! Fuzz target of the decoder `table_footer`.

#![no_main]

mainstay_fuzz::target!("table_footer");
