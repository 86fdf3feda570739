//! What a node tells about itself: every number and line that it should, and no secret. A program of
//! its own, because it reads the log of the whole process.

mod binary;
mod metrics;
