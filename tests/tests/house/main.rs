//! Rules about the code and the program, whatever they do.

mod architecture;
mod static_binary;
