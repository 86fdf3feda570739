//! What a node tells about itself: every number and line that it should, and no secret.

mod binary;
mod counted;
