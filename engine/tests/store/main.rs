//! The whole store on the simulated disk, against a model: whatever fails, the state after recovery
//! is the model's at one LSN between durable and appended.

mod exhaustive;
mod model;
mod planted;
mod world;
