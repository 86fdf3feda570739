//! The configuration of a node that is a hub.

/// A hub that workers join, and the labels of each worker.
pub const HUB: &str = r#"
[hub]
enabled = true

[[hub.role]]
name = "worker"
labels = { pool = "edge" }
"#;
