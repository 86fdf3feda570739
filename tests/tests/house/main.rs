//! Rules about the code and the program, whatever they do.

mod architecture;
mod hardware;
mod problems;
mod promises;
mod static_binary;
