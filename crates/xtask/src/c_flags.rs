//! Flags for the C compilers that build scripts start, so that no program names a folder or the time
//! of its build.
//!
//! C code has the path of its file wherever it uses `__FILE__`, as in assertions and in the errors
//! of AWS-LC. Build scripts compile files of cargo's registry, and copies of them in the target
//! folder. C code has the time of its build wherever it uses `__DATE__`, `__TIME__` or
//! `__TIMESTAMP__`, as mimalloc's line about itself does. With these flags the same source gives the
//! same bytes in any folder and at any time.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What programs have in the place of the folder of the workspace.
pub const WORKSPACE_FOLDER: &str = "/alknet";

/// What programs have in the place of cargo's target folder.
pub const TARGET_FOLDER: &str = "/target";

/// What programs have in the place of cargo's own folder.
pub const CARGO_FOLDER: &str = "/cargo";

/// Flags that fix the macros with the time of the build. `SOURCE_DATE_EPOCH` would not do: Clang has
/// it from version 16 on, cargo does not run a build script again when it changes, and the image
/// takes the time of its bill of materials from it. The first flag ends the compiler's warning that
/// the others redefine a macro of its own. `cc` hands the quotation marks to the compiler. A build
/// script that starts `make` would lose them in its shell; no package of the workspace does, and one
/// whose code uses the macros would fail to compile.
const FIXED_TIME: [&str; 4] = [
    "-Wno-builtin-macro-redefined",
    "-D__DATE__=\"1970-01-01\"",
    "-D__TIME__=\"00:00:00\"",
    "-D__TIMESTAMP__=\"1970-01-01T00:00:00\"",
];

/// The variables with which the crate `cc` begins the names of those that it reads.
const VARIABLES: [&str; 2] = ["CFLAGS", "CXXFLAGS"];

/// Cargo's own folder, with the packages of crates.io: `$CARGO_HOME`, or `.cargo` in the user's
/// home. `None` if the user has no home.
#[must_use]
pub fn cargo_home() -> Option<PathBuf> {
    let set = env::var_os("CARGO_HOME").filter(|folder| !folder.is_empty());
    set.map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cargo")))
}

/// Adds the flags to the environment of `command`, a cargo command that builds the workspace at
/// `tree` into the folder `target`. Flags of the user stay, in front of these.
///
/// Every cargo command of the same build has to get the same flags: the build scripts of C
/// libraries run again if a variable differs.
pub fn add(command: &mut Command, triple: &str, tree: &Path, target: &Path) {
    let mut flags = prefix_maps(tree, target, cargo_home().as_deref());
    flags.extend(FIXED_TIME.map(str::to_owned));
    for variable in VARIABLES {
        // With the target in the name, only compilers for it get the flags. `cc` appends them to
        // those of the variables without it.
        let variable = format!("{variable}_{}", triple.replace(['-', '.'], "_"));
        let value = with_flags(env::var_os(&variable).unwrap_or_default(), &flags);
        command.env(variable, value);
    }
}

/// One flag for each folder that a flag can name.
fn prefix_maps(tree: &Path, target: &Path, cargo: Option<&Path>) -> Vec<String> {
    // Of several that fit, compilers take the last one, and a target folder may lie in the tree.
    let folders = [
        (Some(tree), WORKSPACE_FOLDER),
        (Some(target), TARGET_FOLDER),
        (cargo, CARGO_FOLDER),
    ];
    let flags = folders.into_iter().filter_map(|(folder, name)| {
        // Without a slash at its end, which the name that stands for it does not have either.
        let folder = folder?.components().as_path().to_str()?;
        can_be_in_a_flag(folder).then(|| format!("-ffile-prefix-map={folder}={name}"))
    });
    flags.collect()
}

/// Whether a flag can have this path: `cc` splits the variable at white space, or as a shell does,
/// and the compiler splits the flag at its equals sign. Programs name a folder that no flag can
/// have.
fn can_be_in_a_flag(folder: &str) -> bool {
    let splits = |c: char| c.is_whitespace() || matches!(c, '=' | '\'' | '"' | '\\');
    Path::new(folder).is_absolute() && !folder.contains(splits)
}

/// The user's flags with these behind them, each once: a command that cargo runs may start cargo.
fn with_flags(own: OsString, flags: &[String]) -> OsString {
    let mut all = own;
    for flag in flags {
        let is_there = all
            .to_str()
            .is_some_and(|all| all.split_ascii_whitespace().any(|word| word == flag));
        if is_there {
            continue;
        }
        if !all.is_empty() {
            all.push(" ");
        }
        all.push(flag);
    }
    all
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The C compiler is there, because Rust links its programs with it.
    #[test]
    fn what_is_compiled_names_no_folder_of_its_build() {
        let base = tempfile::tempdir().expect("a folder of this test's own");
        let folders = ["tree", "target", "cargo"].map(|name| base.path().join(name));
        let flags = prefix_maps(&folders[0], &folders[1], Some(&folders[2]));
        let object = base.path().join("code.o");
        for (folder, name) in folders
            .iter()
            .zip([WORKSPACE_FOLDER, TARGET_FOLDER, CARGO_FOLDER])
        {
            fs::create_dir(folder).expect("ours");
            let source = folder.join("code.c");
            fs::write(&source, "const char *const file = __FILE__;\n").expect("ours");
            let status = Command::new("cc")
                .args(&flags)
                .arg("-c")
                .arg(&source)
                .arg("-o")
                .arg(&object)
                .status()
                .expect("it starts");
            assert!(status.success(), "{flags:?}");
            let bytes = fs::read(&object).expect("compiled");
            let text = String::from_utf8_lossy(&bytes);
            assert!(text.contains(&format!("{name}/code.c\0")), "{name}");
            assert!(
                !text.contains(&*base.path().to_string_lossy()),
                "{}",
                folder.display()
            );
        }
    }

    #[test]
    fn what_is_compiled_has_no_time_of_its_build() {
        let base = tempfile::tempdir().expect("a folder of this test's own");
        let (source, object) = (base.path().join("code.c"), base.path().join("code.o"));
        let code = "const char *const built = __DATE__ \" \" __TIME__ \" \" __TIMESTAMP__;\n";
        fs::write(&source, code).expect("ours");
        let mut cargo = Command::new("cargo");
        add(&mut cargo, "a-b", base.path(), &base.path().join("target"));
        let set = cargo.get_envs().find(|(name, _)| *name == "CFLAGS_a_b");
        let flags = set.and_then(|(_, value)| value?.to_str());
        // As `cc` splits the variable.
        let flags = flags.expect("set").split_ascii_whitespace();
        let status = Command::new("cc")
            .args(flags)
            .args(["-Wall", "-Werror", "-c"])
            .arg(&source)
            .arg("-o")
            .arg(&object)
            .status()
            .expect("it starts");
        assert!(status.success(), "a compiler may warn of a flag");
        let bytes = fs::read(&object).expect("compiled");
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("1970-01-01 00:00:00 1970-01-01T00:00:00\0"));
    }

    #[test]
    fn flags_of_the_user_stay_and_no_flag_is_there_twice() {
        let flags = ["-a=b".to_owned(), "-c=d".to_owned()];
        let all = with_flags("-O1 -x".into(), &flags);
        assert_eq!(all, "-O1 -x -a=b -c=d");
        assert_eq!(with_flags(all.clone(), &flags), all);
        assert_eq!(with_flags(OsString::new(), &flags), "-a=b -c=d");
    }

    #[test]
    fn a_folder_that_would_be_split_gets_no_flag() {
        let flags = |tree: &str| prefix_maps(Path::new(tree), Path::new("/t/"), None);
        let target = "-ffile-prefix-map=/t=/target";
        assert_eq!(
            flags("/home/me/work"),
            ["-ffile-prefix-map=/home/me/work=/alknet", target]
        );
        for tree in ["/my work", "/a=b", "/it's", "/a\\b", "relative"] {
            assert_eq!(flags(tree), [target], "{tree}");
        }
    }
}
