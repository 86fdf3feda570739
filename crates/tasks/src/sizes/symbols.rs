//! Which library each byte of a program comes from, by the names in its symbol table.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

/// Bytes by name.
pub(super) type SizeTable = BTreeMap<String, u64>;

/// The bytes of a program with its sections, before it is stripped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ProgramSizes {
    /// What has a symbol, by crate or library.
    pub libraries: SizeTable,
    /// What has none, by section: tables for unwinding, texts, relocations.
    pub sections: SizeTable,
}

/// Functions and data of a library of C.
#[derive(Debug)]
struct ForeignLibrary {
    name: &'static str,
    /// Beginnings of the names of its symbols.
    symbols: &'static [&'static str],
    /// Beginnings of the names of its source files with local symbols. Names of assembler files are
    /// not in a program: their symbols follow those of another file.
    files: &'static [&'static str],
}

/// Libraries of C in the programs of an image.
const FOREIGN: [ForeignLibrary; 6] = [
    ForeignLibrary {
        name: "AWS-LC",
        symbols: &[
            "aws_lc_",
            "bignum_",
            "curve25519_x25519",
            "ecp_nistz256",
            "edwards25519_",
        ],
        files: &[
            "bcm.c",
            "e_",
            "ec_",
            "err_data.c",
            "obj.c",
            "p_",
            "poly1305_vec.c",
            "ripemd.c",
        ],
    },
    ForeignLibrary {
        name: "Mesa",
        symbols: &["nir_", "util_format_", "vk_"],
        // The file before the sealed driver, which has lost the names of its own files.
        files: &["alknet_vulkan."],
    },
    ForeignLibrary {
        name: "mimalloc",
        symbols: &["mi_", "_mi_"],
        files: &["static.c"],
    },
    ForeignLibrary {
        name: "QuickJS-ng",
        symbols: &["JS_", "js_", "lre_", "qjsc_", "unicode_"],
        files: &["dtoa.c", "libregexp.c", "libunicode.c", "quickjs.c"],
    },
    ForeignLibrary {
        name: "SQLite",
        symbols: &["sqlite3"],
        files: &["sqlite3.c"],
    },
    ForeignLibrary {
        name: "Zstandard",
        symbols: &["FSE_", "HIST_", "HUF_", "POOL_", "XXH_", "ZSTD"],
        files: &["fse_", "huf_", "zstd_"],
    },
];

/// Beginnings of mangled names of C++ in its standard library, behind `_Z`.
const CPP_STANDARD: [&str; 7] = [
    "N10__cxxabiv1",
    "N9__gnu_cxx",
    "NKSt",
    "NSt",
    "St",
    "TVN10__cxxabiv1",
    "TVSt",
];

/// The libraries of C++ in the program for GPUs. The few functions of Mesa in C++ count for LLVM.
const CPP_LIBRARIES: [&str; 2] = ["libstdc++", "LLVM"];

/// What is neither Rust nor in the list: the C library, and the run-time of the compiler of C.
const C_LIBRARY: &str = "C library";

/// Hexadecimal digits of the hash at the end of a name in Rust's older form, behind an `h`.
const LEGACY_HASH_DIGITS: usize = 16;

/// The bytes of an ELF file by library, and of its sections what has no symbol.
///
/// The linker keeps functions with identical code once, under all of their names. Such code counts for
/// the first name's library in alphabetical order.
pub(super) fn by_library(file: &[u8]) -> Result<ProgramSizes, object::Error> {
    let elf = ElfFile64::<Endianness>::parse(file)?;
    let mut sections: BTreeMap<usize, (String, u64)> = BTreeMap::new();
    for section in elf.sections() {
        if occupies_bytes(section.kind()) && section.address() != 0 {
            let name = section.name()?.to_owned();
            sections.insert(section.index().0, (name, section.size()));
        }
    }
    let mut placed = placed_symbols(&elf, &sections.keys().copied().collect())?;
    placed.sort();
    let mut sizes = ProgramSizes::default();
    let mut end = 0;
    for symbol in placed {
        let from = symbol.address.max(end);
        let to = symbol.address.saturating_add(symbol.bytes.0);
        let own = to.saturating_sub(from);
        end = end.max(to);
        if own == 0 {
            continue;
        }
        *sizes.libraries.entry(symbol.library).or_default() += own;
        if let Some((_, left)) = sections.get_mut(&symbol.section) {
            *left = left.saturating_sub(own);
        }
    }
    for (name, bytes) in sections.into_values().filter(|(_, bytes)| *bytes > 0) {
        *sizes.sections.entry(name).or_default() += bytes;
    }
    Ok(sizes)
}

/// Whether a section of this kind has bytes in the file.
const fn occupies_bytes(kind: SectionKind) -> bool {
    !matches!(
        kind,
        SectionKind::UninitializedData | SectionKind::UninitializedTls | SectionKind::Metadata
    )
}

/// A symbol with a size. Larger ones come before those that lie within them.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PlacedSymbol {
    address: u64,
    bytes: Reverse<u64>,
    library: String,
    section: usize,
}

fn placed_symbols(
    elf: &ElfFile64<'_, Endianness>,
    sections: &BTreeSet<usize>,
) -> Result<Vec<PlacedSymbol>, object::Error> {
    let mut placed = Vec::new();
    let mut file = "";
    for symbol in elf.symbols() {
        if symbol.kind() == SymbolKind::File {
            file = symbol.name()?;
            continue;
        }
        // Thread-local data has offsets and not addresses.
        if symbol.kind() == SymbolKind::Tls || symbol.size() == 0 {
            continue;
        }
        let Some(section) = symbol.section_index().map(|index| index.0) else {
            continue;
        };
        if !sections.contains(&section) {
            continue;
        }
        // Names of files precede local symbols only.
        let file = if symbol.is_local() { file } else { "" };
        placed.push(PlacedSymbol {
            address: symbol.address(),
            bytes: Reverse(symbol.size()),
            library: library(symbol.name()?, file),
            section,
        });
    }
    Ok(placed)
}

/// The library of a symbol that is defined in a source file, if that is known.
fn library(symbol: &str, file: &str) -> String {
    if let Some(name) = rust_crate(symbol) {
        return name;
    }
    if let Some(mangled) = symbol.strip_prefix("_Z") {
        let mut standard = CPP_STANDARD.iter();
        let is_standard = standard.any(|prefix| mangled.starts_with(prefix));
        return CPP_LIBRARIES[usize::from(!is_standard)].to_owned();
    }
    let begins = |text: &str, with: &[&str]| with.iter().any(|start| text.starts_with(start));
    let mut libraries = FOREIGN.iter();
    let found =
        libraries.find(|library| begins(symbol, library.symbols) || begins(file, library.files));
    found.map_or(C_LIBRARY, |library| library.name).to_owned()
}

/// The crate in a mangled name of Rust, with underscores.
fn rust_crate(symbol: &str) -> Option<String> {
    let demangled = rustc_demangle::try_demangle(symbol).ok()?;
    // C++ has the same beginning as Rust's older form, and not its end.
    if symbol.starts_with("_ZN") && !has_hash(&demangled.to_string()) {
        return None;
    }
    crate_in(&format!("{demangled:#}")).map(str::to_owned)
}

fn has_hash(demangled: &str) -> bool {
    let end = demangled.rsplit_once("::h").map(|(_, end)| end);
    end.is_some_and(|end| {
        end.len() == LEGACY_HASH_DIGITS && end.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// The crate of a path, or of an implementation `<Type as Trait>::function`: that of the type, or of the
/// trait if the type is built in or a parameter.
fn crate_in(name: &str) -> Option<&str> {
    let path = name.trim_start_matches(['<', '&', '*', '(', '[']);
    for qualifier in ["mut ", "dyn ", "const "] {
        if let Some(rest) = path.strip_prefix(qualifier) {
            return crate_in(rest);
        }
    }
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_');
    let (first, rest) = path.split_at(end.unwrap_or(path.len()));
    if !first.is_empty() && rest.starts_with("::") {
        return Some(first);
    }
    let (_, behind) = name.split_once(" as ")?;
    crate_in(behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_begins_with_its_crate() {
        for (name, expected) in [
            ("alknet_call::session::open", Some("alknet_call")),
            (
                "<alloc::vec::Vec<T> as core::fmt::Debug>::fmt",
                Some("alloc"),
            ),
            (
                "<&mut serde_json::de::Deserializer<R>>::parse",
                Some("serde_json"),
            ),
            ("<dyn tracing::Subscriber>::downcast", Some("tracing")),
            ("<u8 as core::fmt::Debug>::fmt", Some("core")),
            ("<T as tower::Service<R>>::call", Some("tower")),
            ("<(A, B) as core::hash::Hash>::hash", Some("core")),
            ("main", None),
        ] {
            assert_eq!(crate_in(name), expected, "{name}");
        }
    }

    #[test]
    fn both_forms_of_mangled_names_are_read_and_those_of_cpp_are_not_taken_for_them() {
        for (symbol, expected) in [
            ("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE", "core"),
            ("_RNvNtCs1234_7mycrate3foo3bar", "mycrate"),
            ("_ZN4llvm5Value7dumpEv", "LLVM"),
            ("_ZN4llvm5ValueE", "LLVM"),
            ("_ZN12_GLOBAL__N_19StackSafeE", "LLVM"),
            ("_ZNSt6vectorIiSaIiEE4sizeEv", "libstdc++"),
            ("sqlite3_step", "SQLite"),
            ("aws_lc_0_47_0_EVP_sha256", "AWS-LC"),
            ("memcpy", C_LIBRARY),
        ] {
            assert_eq!(library(symbol, ""), expected, "{symbol}");
        }
        assert_eq!(library("resolveAlias", "sqlite3.c"), "SQLite");
        assert_eq!(library("lower_alu", "alknet_vulkan.0123-cgu.0"), "Mesa");
        assert_eq!(library("_ZN4llvm4SizeE", "alknet_vulkan.0-cgu.0"), "LLVM");
    }

    /// This test program has code of this crate, of the library that reads ELF files, and tables.
    #[test]
    fn a_program_has_its_own_code_and_that_of_its_libraries() {
        let program = std::fs::read("/proc/self/exe").expect("readable");
        let sizes = by_library(&program).expect("an ELF file");
        for name in ["alknet_tasks", "core", "object", C_LIBRARY] {
            let bytes = sizes.libraries.get(name).copied().unwrap_or_default();
            assert!(bytes > 1000, "{name}: {bytes}: {:?}", sizes.libraries);
        }
        assert!(
            sizes.sections.contains_key(".eh_frame"),
            "{:?}",
            sizes.sections
        );
        let all: u64 = sizes
            .libraries
            .values()
            .chain(sizes.sections.values())
            .sum();
        assert!(all < program.len() as u64, "no byte counts twice: {all}");
    }
}
