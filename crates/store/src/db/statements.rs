//! Prepared statements of one connection, which are compiled once.

#[cfg(test)]
use std::cell::Cell;
use std::cell::RefCell;
use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Params, Row, Statement};

/// Compiled statements that no caller uses at the moment, by their text.
///
/// rusqlite's own cache is a feature of its own, with a further package. The texts here are constants, so that their
/// number is bounded.
pub(crate) struct StatementCache<'c> {
    connection: &'c Connection,
    idle: RefCell<HashMap<&'static str, Vec<Statement<'c>>>>,
    /// How often a statement ran.
    #[cfg(test)]
    runs: Cell<u64>,
    /// Steps of SQLite's machine in all statements: what they cost on any computer.
    #[cfg(test)]
    steps: Cell<u64>,
}

impl<'c> StatementCache<'c> {
    pub(crate) fn new(connection: &'c Connection) -> Self {
        Self {
            connection,
            idle: RefCell::default(),
            #[cfg(test)]
            runs: Cell::default(),
            #[cfg(test)]
            steps: Cell::default(),
        }
    }

    pub(crate) const fn connection(&self) -> &'c Connection {
        self.connection
    }

    /// How often a statement ran.
    #[cfg(test)]
    pub(crate) const fn runs(&self) -> u64 {
        self.runs.get()
    }

    /// Steps of SQLite's machine in all statements.
    #[cfg(test)]
    pub(crate) const fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// Runs a statement, and returns how many rows it changed.
    pub(crate) fn execute(
        &self,
        sql: &'static str,
        params: impl Params,
    ) -> rusqlite::Result<usize> {
        self.with(sql, |statement| statement.execute(params))
    }

    /// The first row of a query, if there is one.
    pub(crate) fn query_row<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Option<T>> {
        self.with(sql, |statement| {
            statement.query_row(params, read).optional()
        })
    }

    /// All rows of a query. The text of the query bounds their number, or the caller has a reason to take them all.
    pub(crate) fn query_all<T>(
        &self,
        sql: &'static str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.with(sql, |statement| {
            statement.query_map(params, read)?.collect()
        })
    }

    /// Lends a statement. One that is in use already, by a caller further up, is compiled a second time.
    fn with<T>(
        &self,
        sql: &'static str,
        run: impl FnOnce(&mut Statement<'c>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        #[cfg(test)]
        self.runs.set(self.runs.get() + 1);
        // Taken out of the map, so that no borrow lasts while the statement runs: its reader may
        // run further queries.
        let idle = self.idle.borrow_mut().get_mut(sql).and_then(Vec::pop);
        let mut statement = match idle {
            Some(statement) => statement,
            None => self.connection.prepare(sql)?,
        };
        let result = run(&mut statement);
        #[cfg(test)]
        {
            let steps = statement.reset_status(rusqlite::StatementStatus::VmStep);
            self.steps
                .set(self.steps.get() + u64::try_from(steps).unwrap_or_default());
        }
        // A blob that is still bound would stay in memory.
        statement.clear_bindings();
        let mut idle = self.idle.borrow_mut();
        idle.entry(sql).or_default().push(statement);
        result
    }
}
