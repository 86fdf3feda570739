//! Bounds that docs/SPECIFICATION.md says are not met: missing one of them fails no run.

use super::rows::Row;

/// One of these bounds.
struct NotMet {
    /// How its row of docs/SPECIFICATION.md begins.
    promise: &'static str,
    bench: &'static str,
    /// The cases of its rows here, and their unit.
    cases: &'static [&'static str],
    unit: &'static str,
}

/// All of them.
const NOT_MET: [NotMet; 10] = [
    NotMet {
        promise: "power-on to answered call on microvm",
        bench: "boot",
        cases: &["microvm: power-on to answered call"],
        unit: "CPU s",
    },
    NotMet {
        promise: "our answered call on q35",
        bench: "boot",
        cases: &["q35: power-on to answered call"],
        unit: "CPU s",
    },
    NotMet {
        promise: "at least 1.5 times tonic's calls per second",
        bench: "call",
        cases: &[
            "unary 4096 B, 1 connection, QUIC",
            "unary 4096 B, 16 connections, QUIC",
        ],
        unit: "calls/s",
    },
    NotMet {
        promise: "calls over HTTP",
        bench: "http",
        cases: &["HTTP/1.1 /call, 64 B", "HTTP/2 /call, 64 B"],
        unit: "requests/s",
    },
    NotMet {
        promise: "static files: more a second than Caddy",
        bench: "http",
        cases: &["HTTP/1.1 file of 1 MiB", "HTTP/2 file of 1 MiB"],
        unit: "requests/s",
    },
    NotMet {
        promise: "a call over WebSocket",
        bench: "http",
        cases: &["WebSocket: one that says nothing, at its server"],
        unit: "KiB",
    },
    NotMet {
        promise: "the same, matrices brought there and the product back",
        bench: "compute",
        cases: &["matmul 256: shader, end to end, 2 threads"],
        unit: "GFLOP/s",
    },
    NotMet {
        promise: "products of matrices by the processor",
        bench: "compute",
        cases: &[
            "matmul 256: processor, 1 thread",
            "matmul 512: processor, 1 thread",
            "matmul 256: processor, 2 threads",
        ],
        unit: "GFLOP/s",
    },
    NotMet {
        promise: "reading and writing sealed data is no slower",
        bench: "vault",
        cases: &MAPPED,
        unit: "MB/s",
    },
    NotMet {
        promise: "by 1 MiB at least 0.8 as fast as AES-256-XTS in memory",
        bench: "vault",
        cases: &MAPPED,
        unit: "MB/s",
    },
];

/// What is read and written through a mapping of an emulated machine: by its clock, not by its instructions.
const MAPPED: [&str; 4] = [
    "machine: write 64 MiB by 1 MiB",
    "machine: read 64 MiB by 1 MiB",
    "machine: write 4 KiB, 2048 places",
    "machine: read 4 KiB, 2048 places",
];

/// Whether the row's bound is one of these.
pub(super) fn is_listed(row: &Row) -> bool {
    NOT_MET.iter().any(|bound| {
        bound.bench == row.bench
            && bound.unit == row.unit
            && bound.cases.contains(&row.case.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIFICATION: &str = include_str!("../../../docs/SPECIFICATION.md");

    #[test]
    fn these_are_the_bounds_that_the_specification_says_are_not_met() {
        let said: Vec<&str> = SPECIFICATION
            .lines()
            .filter(|line| line.contains("`cargo xtask bench") && line.contains("**not met**"))
            .collect();
        assert_eq!(said.len(), NOT_MET.len(), "{said:#?}");
        for bound in NOT_MET {
            let begins = format!("| {}", bound.promise);
            let bench = format!("`cargo xtask bench {}`", bound.bench);
            assert!(
                said.iter()
                    .any(|line| line.starts_with(&begins) && line.contains(&bench)),
                "{}",
                bound.promise
            );
        }
    }

    #[test]
    fn only_the_listed_figure_of_a_case_is() {
        let row = |unit| Row::lower("boot", "microvm: power-on to answered call", unit, 1.0);
        assert!(is_listed(&row("CPU s")) && !is_listed(&row("M instructions")));
        assert!(!is_listed(&Row::lower("vault", "a case", "CPU s", 1.0)));
    }
}
