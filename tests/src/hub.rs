//! What a node is configured with to be a hub.

/// A hub that workers join, and what each of them is labelled with.
pub const HUB: &str = r#"
[hub]
enabled = true

[[hub.role]]
name = "worker"
labels = { pool = "edge" }
"#;
