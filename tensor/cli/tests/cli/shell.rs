//! A folder, and a command line that is read as `alknet tensor` reads it.

use std::path::{Path, PathBuf};

use alknet_tensor::{ContainerWriter, Dtype, FieldType, StructField};
use alknet_tensor_cli::{LocalTensorVerb, TensorCliError, TensorCliOutcome, run};
use clap::Parser;
use serde_json::Value;

/// The layout of the records of [`TensorShell::sample`].
const SCHEMA: &str = r#"{"$defs":{"Point":{"TypeDef:Struct":{"fields":["x","n"]},"properties":{
    "x":{"TypeDef:Float32":true},"n":{"TypeDef:Uint16":true}}}}}"#;

#[derive(Parser)]
struct TestCli {
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: LocalTensorVerb,
}

/// What a command said and how it ended.
pub(crate) type CliEnd = (Result<TensorCliOutcome, TensorCliError>, String);

/// A folder that goes away.
pub(crate) struct TensorShell(tempfile::TempDir);

impl TensorShell {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder can be made"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).expect("readable");
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("readable").file_name();
        let mut names: Vec<_> = entries
            .map(|entry| name(entry).into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }

    /// Runs a line; words that begin with `/` are files of the folder.
    pub(crate) fn run(&self, line: &str) -> CliEnd {
        let mut out = Vec::new();
        let ended = self.run_to(line, &mut out);
        (ended, String::from_utf8_lossy(&out).into_owned())
    }

    /// The same, with what it prints as bytes.
    pub(crate) fn run_to(
        &self,
        line: &str,
        out: &mut dyn std::io::Write,
    ) -> Result<TensorCliOutcome, TensorCliError> {
        let words = line.split(' ').map(|word| match word.strip_prefix('/') {
            Some(file) => self.path(file).to_string_lossy().into_owned(),
            None => word.to_owned(),
        });
        let cli = TestCli::try_parse_from(["tensor".to_owned()].into_iter().chain(words));
        let cli = cli.expect("a line that can be read");
        run(cli.verb, cli.json, out)
    }

    /// What a line prints that ends well.
    pub(crate) fn good(&self, line: &str) -> String {
        let (ended, text) = self.run(line);
        assert_eq!(ended.expect(line), TensorCliOutcome::Good, "{line}: {text}");
        text
    }

    /// The same as JSON.
    pub(crate) fn json(&self, line: &str) -> Value {
        let text = self.good(&format!("{line} --json"));
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// `sample.mt`: elements, records, items.
    pub(crate) fn sample(&self) -> PathBuf {
        let path = self.path("sample.mt");
        sample(&path);
        path
    }
}

fn sample(path: &Path) {
    let mut writer = ContainerWriter::create(path)
        .expect("writable")
        .with_schema(SCHEMA);
    let elements: Vec<u8> = (0..6_u8).flat_map(|n| f32::from(n).to_le_bytes()).collect();
    let mut records = Vec::new();
    for (x, n) in [(0.5_f32, 7_u16), (f32::INFINITY, 8)] {
        records.extend(x.to_le_bytes());
        records.extend(n.to_le_bytes());
        records.extend([0, 0]);
    }
    let fields = vec![
        StructField::new("/x", FieldType::Float32, 0),
        StructField::new("/n", FieldType::Uint16, 4),
    ];
    let add = || {
        writer
            .flat("weights", Dtype::F32, &[2, 3], elements.clone().into())?
            .strukt("points", "#/$defs/Point", [2, 8], fields, records.into())?
            .blob("names", "utf8", [3, 0, 5], b"onethree".to_vec().into())?
            .metadata("format", "pt")?;
        Ok::<(), alknet_tensor::TensorError>(())
    };
    add().expect("it fits");
    writer.save().expect("writable");
}
