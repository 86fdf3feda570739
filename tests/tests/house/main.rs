//! Rules about the code and the program as a whole.

mod architecture;
mod arguments;
mod audit;
mod campaigns;
mod comments;
mod comparison;
mod decisions;
mod documentation;
mod doors;
mod early_returns;
mod errors;
mod examples;
mod figures;
mod hardware;
mod metrics;
mod names;
mod operations;
mod page_commands;
mod placement;
mod problems;
mod promises;
mod renames;
mod static_binary;
mod tree;
mod wasm;
