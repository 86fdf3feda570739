//! What a node reports about itself: every number and line that it should, and no secret. A
//! separate program, because it reads the log of the whole process.

mod binary;
mod metrics;
