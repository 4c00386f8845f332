//! Fuzz target of the decoder `table_superseded`.

#![no_main]

mainstay_fuzz::target!("table_superseded");
