//! Real workers, most of them hostile, watched from outside.

mod act;
mod ends;
mod host;
mod limits;
mod machine;
mod pool;
mod walls;
