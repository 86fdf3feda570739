//! A table of required outcomes: a row per proof, a column per carriage.

use std::fmt::Display;
use std::path::Path;

use alknet_core::Carriage;

/// The carriage of a cell. Another carriage needs another variant, another name, and another arm where the
/// connections are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransportColumn {
    Quic,
    Tls,
    Iroh,
}

impl TransportColumn {
    pub(crate) const ALL: [Self; 3] = [Self::Quic, Self::Tls, Self::Iroh];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Quic => "QUIC",
            Self::Tls => "TLS/TCP",
            Self::Iroh => "iroh",
        }
    }

    pub(crate) const fn carriage(self) -> Carriage {
        match self {
            Self::Quic => Carriage::Quic,
            Self::Tls => Carriage::Tcp,
            Self::Iroh => Carriage::Iroh,
        }
    }
}

/// The table, and the cells that differed from it.
pub(crate) struct RoleMatrix {
    text: String,
    wrong: Vec<String>,
}

impl RoleMatrix {
    pub(crate) fn new(head: &[String]) -> Self {
        let rule: String = head.iter().map(|_| "|---").collect();
        Self {
            text: format!("| {} |\n{rule}|\n", head.join(" | ")),
            wrong: Vec::new(),
        }
    }

    /// A row begins with its subject.
    pub(crate) fn row(&mut self, role: &str, proof: &str) {
        self.text += &format!("| {role} | {proof} |");
    }

    /// A cell: the required and the observed outcome.
    pub(crate) fn cell(&mut self, expected: &impl Display, got: &impl Display) {
        let (expected, got) = (expected.to_string(), got.to_string());
        let shown = if expected == got {
            expected
        } else {
            let row = self.text.lines().last().unwrap_or_default().to_owned();
            self.wrong.push(format!("{row} {expected}: {got}"));
            format!("{expected}, **but {got}**")
        };
        self.text += &format!(" {shown} |");
    }

    pub(crate) fn end_row(&mut self) {
        self.text.push('\n');
    }

    /// Checks that every cell was as required, and that the documentation has this very table.
    pub(crate) fn check(&self) {
        let Self { text, wrong } = self;
        assert!(wrong.is_empty(), "{text}\n{wrong:#?}");
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/matrix.md");
        let page = std::fs::read_to_string(page).expect("docs/matrix.md");
        assert!(
            page.contains(text),
            "docs/matrix.md lacks this table:\n{text}"
        );
    }
}
