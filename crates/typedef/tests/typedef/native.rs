//! Offsets compared with those of two compilers: `rustc` with `#[repr(C)]`, and `cc`.
//!
//! Random layouts become types of both languages. Each program prints the offset of every field, and the output must
//! equal that of the layout engine.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use alknet_typedef::{FieldKind, LayoutMode, SchemaLimits, compile};

use crate::plan::{PlanRng, PlanStyle, SchemaPlan};

/// Layouts in one program.
const LAYOUTS: u64 = 80;

/// The source text in one language.
struct NativeSource {
    c: String,
    rust: String,
    /// Statements that print.
    c_main: String,
    rust_main: String,
    types: usize,
}

/// A type, and its name in each language.
#[derive(Clone)]
struct NativeTypeName {
    c: String,
    rust: String,
    /// The text after a member's name in C.
    c_suffix: String,
}

/// The offset of a part: the sum in both languages, and the path.
#[derive(Clone)]
struct PartOffset {
    path: String,
    c: String,
    rust: String,
}

impl PartOffset {
    fn below(&self, part: &str, c: &str, rust: &str) -> Self {
        Self {
            path: format!("{}/{part}", self.path),
            c: format!("{} + {c}", self.c),
            rust: format!("{} + {rust}", self.rust),
        }
    }
}

impl NativeSource {
    fn new() -> Self {
        Self {
            c: "#include <stdio.h>\n#include <stdint.h>\n#include <stddef.h>\n".to_owned(),
            rust: "#![allow(dead_code)]\nuse std::mem::{align_of, offset_of, size_of};\n"
                .to_owned(),
            c_main: String::new(),
            rust_main: String::new(),
            types: 0,
        }
    }

    fn fresh(&mut self) -> String {
        self.types += 1;
        format!("T{}", self.types)
    }

    /// Declares the types of `plan`'s parts.
    fn declare(&mut self, plan: &SchemaPlan) -> NativeTypeName {
        match plan {
            SchemaPlan::Scalar(kind) => scalar(*kind),
            SchemaPlan::Enum(_) => scalar(FieldKind::Uint32),
            SchemaPlan::Text {
                kind,
                encoding,
                max,
            } => match (*kind, *encoding) {
                (_, "indirect") => {
                    let [off, len] =
                        ["off", "len"].map(|name| (name.to_owned(), scalar(FieldKind::Uint64)));
                    self.structure("struct", &[off, len], 1)
                }
                (FieldKind::Bytes, _) => {
                    let len = ("len".to_owned(), scalar(FieldKind::Uint32));
                    let data = (
                        "data".to_owned(),
                        array(&scalar(FieldKind::Uint8), (*max).into()),
                    );
                    self.structure("struct", &[len, data], 1)
                }
                _ => array(&scalar(FieldKind::Uint8), (*max).into()),
            },
            SchemaPlan::Struct { fields, align } => {
                let fields = fields
                    .iter()
                    .map(|(name, plan)| (name.clone(), self.declare(plan)));
                let fields: Vec<_> = fields.collect();
                self.structure("struct", &fields, *align)
            }
            SchemaPlan::Union { tag, variants, .. } => {
                let variants = variants
                    .iter()
                    .map(|(name, plan)| (format!("v{name}"), self.declare(plan)));
                let variants: Vec<_> = variants.collect();
                let body = self.structure("union", &variants, 1);
                let fields = [("tag".to_owned(), scalar(*tag)), ("body".to_owned(), body)];
                self.structure("struct", &fields, 1)
            }
            SchemaPlan::Array { item, count } => {
                array(&self.declare(item), count.unwrap_or_default())
            }
            SchemaPlan::Record(_) => panic!("no compiler has records"),
        }
    }

    fn structure(
        &mut self,
        what: &str,
        fields: &[(String, NativeTypeName)],
        align: u32,
    ) -> NativeTypeName {
        let name = self.fresh();
        let raise = |text: String| if align > 1 { text } else { String::new() };
        let c_align = raise(format!("__attribute__((aligned({align}))) "));
        let rust_align = raise(format!(", align({align})"));
        let mut c = format!("{what} {c_align}{name} {{");
        let mut rust =
            format!("#[repr(C{rust_align})] #[derive(Clone, Copy)] pub {what} {name} {{");
        for (field, of) in fields {
            write!(c, " {} {field}{};", of.c, of.c_suffix).expect("a string grows");
            write!(rust, " {field}: {},", of.rust).expect("a string grows");
        }
        writeln!(self.c, "{c} }};").expect("a string grows");
        writeln!(self.rust, "{rust} }}").expect("a string grows");
        NativeTypeName {
            c: format!("{what} {name}"),
            rust: name,
            c_suffix: String::new(),
        }
    }

    /// Prints the offset of `plan` and of all its parts.
    fn print(&mut self, plan: &SchemaPlan, of: &NativeTypeName, spot: &PartOffset) {
        let PartOffset { path, c, rust } = spot;
        writeln!(
            self.c_main,
            "  printf(\"%s %zu\\n\", \"{path}\", (size_t)({c}));"
        )
        .expect("a string grows");
        writeln!(
            self.rust_main,
            "    println!(\"{{}} {{}}\", \"{path}\", {rust});"
        )
        .expect("a string grows");
        match plan {
            SchemaPlan::Struct { fields, .. } => {
                // Declares the same types once more, with equal layouts, for their names.
                for (name, plan) in fields {
                    let inner = self.declare(plan);
                    self.print(
                        plan,
                        &inner,
                        &spot.below(name, &c_off(of, name), &rust_off(of, name)),
                    );
                }
            }
            SchemaPlan::Union { variants, .. } => {
                for (name, plan) in variants {
                    let inner = self.declare(plan);
                    let spot = spot.below(name, &c_off(of, "body"), &rust_off(of, "body"));
                    self.print(plan, &inner, &spot);
                }
            }
            SchemaPlan::Array { item, count } => {
                let inner = self.declare(item);
                for i in 0..count.unwrap_or_default() {
                    let c = format!("{i} * sizeof({}{})", inner.c, inner.c_suffix);
                    let rust = format!("{i} * size_of::<{}>()", inner.rust);
                    self.print(item, &inner, &spot.below(&i.to_string(), &c, &rust));
                }
            }
            _ => {}
        }
    }
}

fn c_off(of: &NativeTypeName, field: &str) -> String {
    format!("offsetof({}, {field})", of.c)
}

fn rust_off(of: &NativeTypeName, field: &str) -> String {
    format!("offset_of!({}, {field})", of.rust)
}

fn array(item: &NativeTypeName, count: u64) -> NativeTypeName {
    NativeTypeName {
        c: item.c.clone(),
        rust: format!("[{}; {count}]", item.rust),
        c_suffix: format!("[{count}]{}", item.c_suffix),
    }
}

fn scalar(kind: FieldKind) -> NativeTypeName {
    let (c, rust) = match kind {
        FieldKind::Boolean => ("_Bool", "bool"),
        FieldKind::Int8 => ("int8_t", "i8"),
        FieldKind::Int16 => ("int16_t", "i16"),
        FieldKind::Int32 => ("int32_t", "i32"),
        FieldKind::Int64 => ("int64_t", "i64"),
        FieldKind::Uint8 => ("uint8_t", "u8"),
        FieldKind::Uint32 => ("uint32_t", "u32"),
        FieldKind::Uint64 => ("uint64_t", "u64"),
        FieldKind::Float32 => ("float", "f32"),
        FieldKind::Float64 => ("double", "f64"),
        // Neither language has all the half floats; this type has their size.
        _ => ("uint16_t", "u16"),
    };
    NativeTypeName {
        c: c.to_owned(),
        rust: rust.to_owned(),
        c_suffix: String::new(),
    }
}

/// The offsets of the layout engine, in the form of the programs' output.
fn expected(plan: &SchemaPlan) -> String {
    let schema = plan.schema();
    let engine = compile(&schema, LayoutMode::Aligned, &SchemaLimits::default()).expect("a layout");
    let map = engine.offsets().expect("aligned");
    let mut text = format!("{} {}\n", map.stride(), map.align());
    for entry in map.iter() {
        writeln!(text, "{} {}", entry.path(), entry.range().start).expect("a string grows");
        let plain = entry
            .items()
            .filter(|_| map.id(&format!("{}/0", entry.path())).is_none());
        for i in 0..plain.map_or(0, |(count, _)| count) {
            let (path, (_, stride)) = (entry.path(), plain.unwrap_or_default());
            writeln!(text, "{path}/{i} {}", entry.range().start + i * stride)
                .expect("a string grows");
        }
    }
    text
}

fn run(what: &str, compiler: &mut Command, program: &Path) -> String {
    let built = compiler
        .output()
        .unwrap_or_else(|error| panic!("{what} does not start: {error}"));
    assert!(
        built.status.success(),
        "{what}: {}",
        String::from_utf8_lossy(&built.stderr)
    );
    let out = Command::new(program)
        .output()
        .expect("it was built just now");
    assert!(out.status.success(), "{what}: {:?}", out.status);
    String::from_utf8(out.stdout).expect("ASCII")
}

#[test]
fn compilers_lay_out_the_same() {
    let mut source = NativeSource::new();
    let mut wanted = String::new();
    for seed in 0..LAYOUTS {
        let style = PlanStyle {
            mode: LayoutMode::Aligned,
            native: true,
        };
        let plan = SchemaPlan::of_fields(&mut PlanRng::new(seed), style, 3);
        wanted += &expected(&plan);
        let of = source.declare(&plan);
        let (c, rust) = (&of.c, &of.rust);
        writeln!(
            source.c_main,
            "  printf(\"%zu %zu\\n\", sizeof({c}), _Alignof({c}));"
        )
        .expect("a string grows");
        writeln!(
            source.rust_main,
            "    println!(\"{{}} {{}}\", size_of::<{rust}>(), align_of::<{rust}>());"
        )
        .expect("a string grows");
        let spot = PartOffset {
            path: String::new(),
            c: "0".to_owned(),
            rust: "0".to_owned(),
        };
        source.print(&plan, &of, &spot);
    }
    assert!(
        wanted.lines().count() > 1000,
        "{} lines say little",
        wanted.lines().count()
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let c = format!(
        "{}int main(void) {{\n{}  return 0;\n}}\n",
        source.c, source.c_main
    );
    let rust = format!("{}fn main() {{\n{}}}\n", source.rust, source.rust_main);
    std::fs::write(at("layout.c"), c).expect("writable");
    std::fs::write(at("layout.rs"), rust).expect("writable");
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-O0", "-o"])
        .arg(at("by-c"))
        .arg(at("layout.c"));
    let mut rustc = Command::new("rustc");
    rustc
        .args(["--edition", "2024", "-o"])
        .arg(at("by-rust"))
        .arg(at("layout.rs"));
    for (what, compiler, program) in [("cc", cc, "by-c"), ("rustc", rustc, "by-rust")] {
        let mut compiler = compiler;
        let found = run(what, &mut compiler, &at(program));
        for (number, (found, wanted)) in found.lines().zip(wanted.lines()).enumerate() {
            assert_eq!(found, wanted, "{what}, line {number}");
        }
        assert_eq!(found.lines().count(), wanted.lines().count(), "{what}");
    }
}
