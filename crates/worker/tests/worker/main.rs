//! Real workers, most of them hostile, watched from outside.

mod act;
mod confinement;
mod ends;
mod floods;
mod host;
mod limits;
mod machine;
mod pool;
mod starts;
