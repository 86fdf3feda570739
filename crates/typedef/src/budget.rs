//! The budget of one reading.

use crate::error::TypedefError;
use crate::limits::SchemaLimits;
use crate::schema::Result;

/// Counts down while a value is read or written.
#[derive(Clone, Debug)]
pub(crate) struct DecodeBudget {
    values: u64,
    depth: u64,
    limits: SchemaLimits,
}

impl DecodeBudget {
    pub(crate) fn new(limits: &SchemaLimits) -> Self {
        Self {
            values: limits.values,
            depth: limits.depth,
            limits: *limits,
        }
    }

    /// Takes one value, and runs `inside` one level further in.
    pub(crate) fn enter<T>(&mut self, inside: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.down()?;
        let result = inside(self);
        self.up();
        result
    }

    /// Takes one value, and goes one level further in.
    pub(crate) fn down(&mut self) -> Result<()> {
        let over = |what, max| TypedefError::limit(what, max);
        let values = self.values.checked_sub(1);
        self.values = values.ok_or_else(|| over("values read at once", self.limits.values))?;
        let depth = self.depth.checked_sub(1);
        self.depth = depth.ok_or_else(|| over("values within each other", self.limits.depth))?;
        Ok(())
    }

    /// One level back.
    pub(crate) fn up(&mut self) {
        self.depth += 1;
    }
}
