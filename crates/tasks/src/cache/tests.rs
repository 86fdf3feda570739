//! Invented caches, counted and pruned.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Parser as _;
use xtask::last_use::BuildUnit;

use super::candidates::{EvictionRank, list};
use super::folders::rows;
use super::marked::{MarkedCache, mark};
use super::needs::CacheNeeds;
use super::prune::{PruneReport, prune};
use super::*;
use crate::scratch::ScratchFolder;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Hashes of units.
const ONE: &str = "1111111111111111";
const TWO: &str = "2222222222222222";
const THREE: &str = "3333333333333333";

/// The folder of a source.
const SOURCE: &str = "sources/5555555555555555555555555555555555555555555555555555555555555555";

/// A cache of invented files, removed on drop.
struct FakeCache(tempfile::TempDir);

impl FakeCache {
    fn new() -> Self {
        let made_up = Self(tempfile::tempdir().expect("a temporary folder"));
        mark(made_up.path());
        made_up
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn has(&self, name: &str) -> bool {
        fs::symlink_metadata(self.at(name)).is_ok()
    }

    /// A file of so many bytes that was last used so many days ago, with its folders.
    fn file(&self, name: &str, bytes: usize, days: u64) {
        let path = self.at(name);
        let folder = path.parent().expect("it lies in a folder");
        fs::create_dir_all(folder).expect("writable");
        fs::write(&path, vec![1; bytes]).expect("writable");
        for path in path.ancestors().take_while(|path| *path != self.path()) {
            date(path, days);
        }
    }

    /// A unit of a package with one artefact of a mebibyte.
    fn unit(&self, package: &str, hash: &str, days: u64) {
        let artefact = format!("target/release/deps/lib{package}-{hash}.rlib");
        self.file(&artefact, MIB, days);
        let print = format!("target/release/.fingerprint/{package}-{hash}/lib-{package}.json");
        self.file(&print, 16, days);
    }

    fn has_unit(&self, package: &str, hash: &str) -> bool {
        let both = [
            self.has(&format!("target/release/deps/lib{package}-{hash}.rlib")),
            self.has(&format!("target/release/.fingerprint/{package}-{hash}")),
        ];
        assert_eq!(both[0], both[1], "a unit goes or stays as one");
        both[0]
    }

    fn bytes(&self) -> u64 {
        FolderUsage::total(&rows(self.path()).expect("readable")).bytes
    }

    fn marked(&self) -> MarkedCache<'_> {
        MarkedCache::find(self.path()).expect("it is marked")
    }

    fn prune(&self, needs: &CacheNeeds, limit: u64) -> PruneReport {
        prune(self.marked(), needs, limit, false).expect("it can be pruned")
    }

    /// Removes just enough to be so many bytes smaller.
    fn prune_for(&self, needs: &CacheNeeds, bytes: usize) -> PruneReport {
        self.prune(needs, self.bytes() - bytes as u64 + 1)
    }
}

fn date(path: &Path, days: u64) {
    let then = SystemTime::now() - Duration::from_secs(days * 86_400);
    let times = FileTimes::new().set_modified(then).set_accessed(then);
    File::open(path)
        .and_then(|file| file.set_times(times))
        .expect("ours to date");
}

fn unit(hash: &str) -> BuildUnit {
    BuildUnit {
        layout: "release".to_owned(),
        hash: hash.to_owned(),
    }
}

/// The needs of a tree whose packages begin with "own".
fn needs(cache: &FakeCache, folders: &[&str], units: &[&str]) -> CacheNeeds {
    let mut needs = CacheNeeds {
        folders: folders.iter().map(|name| cache.at(name)).collect(),
        members: ["own", "own_too"].map(str::to_owned).into(),
        ..CacheNeeds::default()
    };
    needs.units.needed = units.iter().map(|hash| unit(hash)).collect();
    needs
}

#[test]
fn the_oldest_go_first_and_only_as_many_as_must() {
    let cache = FakeCache::new();
    cache.file("kernel/aaaaaaaaaaaaaaaa/bzImage", MIB, 30);
    cache.file("tools/b-bbbbbbbbbbbbbbbb/bin/b", MIB, 20);
    cache.file("image/cccccccccccccccc/disk.raw", MIB, 10);
    cache.file("gpu/dddddddddddddddd/program", MIB, 1);
    let needs = needs(&cache, &[], &[]);
    let text = cache.prune_for(&needs, MIB).text();
    assert!(
        text.contains("kernel/aaaaaaaaaaaaaaaa") && text.contains("13 minutes"),
        "{text}"
    );
    assert!(!cache.has("kernel/aaaaaaaaaaaaaaaa") && cache.has("tools/b-bbbbbbbbbbbbbbbb"));
    let pruned = cache.prune_for(&needs, MIB + 100 * KIB);
    assert!(
        !cache.has("tools/b-bbbbbbbbbbbbbbbb")
            && !cache.has("image/cccccccccccccccc")
            && cache.has("gpu/dddddddddddddddd")
    );
    assert_eq!(pruned.after(), cache.bytes(), "it was counted again");
    pruned.check().expect("below the limit");
}

#[test]
fn a_cache_below_its_limit_is_left_alone() {
    let cache = FakeCache::new();
    cache.file("kernel/aaaaaaaaaaaaaaaa/bzImage", MIB, 30);
    let pruned = cache.prune(&needs(&cache, &[], &[]), cache.bytes() + 1);
    assert!(cache.has("kernel/aaaaaaaaaaaaaaaa") && !pruned.text().contains("removed"));
    pruned.check().expect("below the limit");
}

#[test]
fn former_versions_go_before_others_however_old() {
    let cache = FakeCache::new();
    cache.unit("serde", ONE, 300);
    cache.file("kernel/aaaaaaaaaaaaaaaa/bzImage", MIB, 200);
    cache.unit("own", TWO, 0);
    cache.unit("own", THREE, 1);
    let needs = needs(&cache, &[], &[THREE]);
    let text = cache.prune_for(&needs, MIB).text();
    assert!(text.contains("1 artefacts of former versions"), "{text}");
    assert!(!cache.has_unit("own", TWO));
    assert!(cache.has_unit("own", THREE) && cache.has_unit("serde", ONE));
    cache.prune_for(&needs, MIB);
    assert!(!cache.has_unit("serde", ONE) && cache.has("kernel/aaaaaaaaaaaaaaaa"));
}

#[test]
fn without_a_record_the_version_used_last_is_the_current_one() {
    let cache = FakeCache::new();
    let [serde, other] = ["4444444444444444", "5555555555555555"];
    cache.unit("serde", serde, 300);
    for (hash, days) in [(ONE, 5), (TWO, 4), (THREE, 10)] {
        cache.unit("own", hash, days);
    }
    cache.unit("own_too", other, 100);
    let needs = needs(&cache, &[], &[]);
    cache.prune_for(&needs, 2 * MIB);
    assert!(!cache.has_unit("own", ONE) && !cache.has_unit("own", THREE));
    cache.prune_for(&needs, 2 * MIB);
    assert!(!cache.has_unit("serde", serde));
    assert!(!cache.has_unit("own_too", other), "by age, as all others");
    assert!(cache.has_unit("own", TWO));
}

#[test]
fn a_recorded_use_counts_for_more_than_a_files_age() {
    let cache = FakeCache::new();
    cache.unit("serde", ONE, 300);
    cache.unit("bytes", TWO, 200);
    let mut needs = needs(&cache, &[], &[]);
    let used = SystemTime::now() - Duration::from_secs(86_400);
    needs.units.last_used = [(unit(ONE), used)].into();
    cache.prune_for(&needs, MIB);
    assert!(cache.has_unit("serde", ONE) && !cache.has_unit("bytes", TWO));
}

#[test]
fn what_the_tree_needs_stays_even_if_the_limit_is_passed() {
    let cache = FakeCache::new();
    cache.file("kernel/eeeeeeeeeeeeeeee/bzImage", MIB, 300);
    cache.file(&format!("{SOURCE}/file"), MIB, 300);
    cache.unit("own", ONE, 300);
    cache.unit("serde", TWO, 300);
    cache.file("kernel/ffffffffffffffff/bzImage", MIB, 0);
    let needs = needs(&cache, &["kernel/eeeeeeeeeeeeeeee", SOURCE], &[ONE, TWO]);
    let pruned = cache.prune(&needs, MIB as u64);
    assert!(
        !cache.has("kernel/ffffffffffffffff"),
        "all that could go went"
    );
    assert!(cache.has("kernel/eeeeeeeeeeeeeeee/bzImage") && cache.has(&format!("{SOURCE}/file")));
    assert!(cache.has_unit("own", ONE) && cache.has_unit("serde", TWO));
    let error = pruned.check().expect_err("the limit is passed");
    assert_eq!(error.exit_code(), 5);
    let text = error.to_string();
    assert!(
        text.contains("4.0 MiB") && text.contains("1.0 MiB"),
        "{text}"
    );
}

#[test]
fn a_dry_run_says_the_same_and_removes_nothing() {
    let cache = FakeCache::new();
    cache.file("kernel/aaaaaaaaaaaaaaaa/bzImage", MIB, 30);
    cache.file("tools/b-bbbbbbbbbbbbbbbb/bin/b", MIB, 20);
    cache.unit("own", ONE, 5);
    let before = cache.bytes();
    let needs = needs(&cache, &[], &[]);
    let dry = prune(cache.marked(), &needs, MIB as u64, true).expect("readable");
    assert_eq!(cache.bytes(), before);
    assert!(
        cache.has("kernel/aaaaaaaaaaaaaaaa")
            && cache.has("tools/b-bbbbbbbbbbbbbbbb")
            && cache.has_unit("own", ONE)
    );
    let wet = cache.prune(&needs, MIB as u64);
    let removed = |pruned: &PruneReport| pruned.json()["removed"].clone();
    assert_eq!(removed(&dry), removed(&wet));
    assert!(dry.text().contains("would be removed"), "{}", dry.text());
    // The sizes before and after differ by the folders that remain.
    assert!(dry.after().abs_diff(wet.after()) < 64 * KIB as u64);
}

#[test]
fn what_the_commands_did_not_write_is_never_removed() {
    let cache = FakeCache::new();
    let kept = [
        "bin/backup.sh",
        "bin/rustc-for-me",
        "binary/mine",
        "gpu/drivers/file",
        "image/photograph.jpg",
        "kernel/linux/Makefile",
        "machines/.tmp-files/file",
        "my-project/in-use",
        "sources/list",
        "tools/mine",
        "vulkan/sdk/file",
    ];
    for name in kept {
        cache.file(name, KIB, 300);
    }
    cache.file("kernel/aaaaaaaaaaaaaaaa/bzImage", KIB, 1);
    let pruned = cache.prune(&needs(&cache, &[], &[]), 1);
    for name in kept {
        assert!(cache.has(name), "{name}");
    }
    assert!(!cache.has("kernel/aaaaaaaaaaaaaaaa"), "that is ours");
    pruned.check().expect_err("the rest is not ours to remove");
}

#[test]
fn a_folder_that_no_command_has_marked_is_refused() {
    let folder = FakeCache::new();
    fs::remove_file(folder.at("CACHEDIR.TAG")).expect("it was marked");
    let error = MarkedCache::find(folder.path()).expect_err("it has no mark");
    let (text, path) = (error.to_string(), folder.path().display().to_string());
    assert!(
        text.contains(&path) && text.contains("CACHEDIR.TAG"),
        "{text}"
    );
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn links_out_of_the_cache_are_not_followed() {
    let outside = FakeCache::new();
    outside.file("kernel/large", MIB, 300);
    outside.unit("own", ONE, 300);
    let cache = FakeCache::new();
    cache.file("kernel/aaaaaaaaaaaaaaaa/bzImage", MIB, 30);
    symlink(outside.at("kernel"), cache.at("kernel/bbbbbbbbbbbbbbbb")).expect("links");
    symlink(outside.at("kernel"), cache.at("tools")).expect("links");
    symlink(outside.at("target"), cache.at("target")).expect("links");
    symlink(
        outside.at("kernel"),
        cache.at("kernel/aaaaaaaaaaaaaaaa/inside"),
    )
    .expect("links");
    cache.file("fuzz/corpus/x", KIB, 10);
    symlink(outside.at("target"), cache.at("fuzz/target")).expect("links");
    assert!(cache.bytes() < 2 * MIB as u64);
    cache.prune(&needs(&cache, &[], &[]), 1);
    assert!(!cache.has("kernel/aaaaaaaaaaaaaaaa") && cache.has("tools") && cache.has("target"));
    assert!(outside.has("kernel/large") && outside.has_unit("own", ONE));
}

#[test]
fn what_a_living_command_uses_stays_and_what_a_killed_one_left_goes_first() {
    let cache = FakeCache::new();
    cache.file("kernel/aaaaaaaaaaaaaaaa/bzImage", MIB, 300);
    cache.file("kernel-build-killed/in-use", 0, 0);
    cache.file("kernel-build-killed/source/file", MIB, 0);
    let living = ScratchFolder::new(cache.path(), "gpu-pack-").expect("writable");
    fs::write(living.path().join("file"), vec![1; MIB]).expect("writable");
    cache.prune_for(&needs(&cache, &[], &[]), MIB);
    assert!(!cache.has("kernel-build-killed") && cache.has("kernel/aaaaaaaaaaaaaaaa"));
    cache.prune(&needs(&cache, &[], &[]), 1);
    assert!(!cache.has("kernel/aaaaaaaaaaaaaaaa") && living.path().join("file").exists());
}

#[test]
fn a_saved_machine_goes_unless_a_test_uses_it() {
    let cache = FakeCache::new();
    for (name, days) in [("used", 300), ("old", 200), ("new", 1)] {
        cache.file(&format!("machines/{name}/contents.json"), MIB, 100);
        cache.file(&format!("machines/{name}.lock"), 0, days);
    }
    let lock = File::open(cache.at("machines/used.lock")).expect("it is there");
    lock.lock_shared().expect("it is free");
    cache.prune_for(&needs(&cache, &[], &[]), MIB);
    assert!(cache.has("machines/used") && cache.has("machines/new"));
    assert!(!cache.has("machines/old") && cache.has("machines/old.lock"));
    cache.prune(&needs(&cache, &[], &[]), 1);
    assert!(cache.has("machines/used") && !cache.has("machines/new"));
}

#[test]
fn results_and_disks_are_never_removed() {
    let cache = FakeCache::new();
    let kept = [
        "fuzz/findings/frame/crash-1",
        "logs/kernel-build.log",
        "machines/administrator.lock",
        "machines/administrator/key",
        "machines/reader.token",
        "soak/2026-01-02-fuzz.md",
        "target/alknet-used/build",
        "times/steps",
        "unknown/file",
        "up/.tmpNewest/disk.raw",
        "up/direct.raw",
        "workspace/Cargo.toml",
    ];
    for name in kept {
        cache.file(name, KIB, 300);
    }
    cache.file("up/.tmpNewest/disk.raw", KIB, 0);
    cache.file("up/.tmpOldest/disk.raw", KIB, 2);
    cache.prune(&needs(&cache, &[], &[]), 1);
    for name in kept {
        assert!(cache.has(name), "{name}");
    }
    assert!(
        !cache.has("up/.tmpOldest"),
        "the machine that used it is long gone"
    );
}

#[test]
fn what_vanishes_before_its_turn_is_no_error() {
    let cache = FakeCache::new();
    cache.file("kernel/aaaaaaaaaaaaaaaa/bzImage", MIB, 300);
    let candidates = list(cache.path(), &needs(&cache, &[], &[])).expect("readable");
    assert_eq!(candidates.len(), 1);
    fs::remove_dir_all(cache.at("kernel")).expect("ours");
    prune::remove(cache.path(), &candidates).expect("nothing is left to remove");
}

/// A link leads to what a mount in the cache would show.
#[test]
fn what_lies_on_another_file_system_is_named_and_stays() {
    let cache = FakeCache::new();
    let kernel = "kernel/aaaaaaaaaaaaaaaa";
    cache.file(&format!("{kernel}/bzImage"), MIB, 300);
    let candidates = list(cache.path(), &needs(&cache, &[], &[])).expect("readable");
    let other = tempfile::tempdir_in("/dev/shm").expect("every system has it");
    let device = |path: &Path| fs::metadata(path).expect("it is there").dev();
    if device(cache.path()) == device(other.path()) {
        alknet_test_support::skip!("a second file system", "temporary files lie in /dev/shm");
    }
    let moved = other.path().join("kernel");
    for folder in [&moved, &moved.join("aaaaaaaaaaaaaaaa")] {
        fs::create_dir(folder).expect("writable");
    }
    fs::remove_dir_all(cache.at("kernel")).expect("ours");
    symlink(&moved, cache.at("kernel")).expect("links");
    let refused = prune::remove(cache.path(), &candidates);
    let refused = refused.expect_err("it is not ours").to_string();
    assert!(refused.contains(kernel), "{refused}");
    assert!(refused.contains("another file system"), "{refused}");
    assert!(cache.has(kernel));
}

#[test]
fn a_program_with_two_names_goes_with_both() {
    let cache = FakeCache::new();
    for (hash, days) in [(ONE, 300), (TWO, 200)] {
        cache.file(&format!("target/release/deps/own-{hash}"), MIB, days);
        cache.file(
            &format!("target/release/.fingerprint/own-{hash}/bin-own"),
            16,
            days,
        );
    }
    let program = cache.at(&format!("target/release/deps/own-{ONE}"));
    fs::hard_link(program, cache.at("target/release/own")).expect("links");
    cache.prune_for(&needs(&cache, &[], &[TWO]), MIB);
    assert!(!cache.has("target/release/own"));
    assert!(!cache.has(&format!("target/release/deps/own-{ONE}")));
    assert!(cache.has(&format!("target/release/deps/own-{TWO}")));
}

#[test]
fn the_table_has_a_row_for_each_folder_and_the_parts_of_target() {
    let cache = FakeCache::new();
    cache.file("kernel/aaaaaaaaaaaaaaaa/bzImage", 2 * MIB, 3);
    cache.file("size", 1, 0);
    cache.file("target/alknet-lock", 0, 1);
    cache.unit("own", ONE, 1);
    cache.file(
        &format!("target/a-b/release/.fingerprint/x-{TWO}/lib-x"),
        1,
        1,
    );
    cache.file(
        &format!("target/a-b/release/deps/libx-{TWO}.rlib"),
        MIB / 2,
        1,
    );
    let library = cache.at(&format!("target/release/deps/libown-{ONE}.rlib"));
    fs::hard_link(library, cache.at("target/release/libown.rlib")).expect("links");
    let rows = rows(cache.path()).expect("readable");
    let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names[..2], ["kernel", "target/deps"]);
    for name in ["target/.fingerprint", "target/(others)", "(files)"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    // The usage of the two folders themselves depends on the file system.
    let kib = rows[1].usage.bytes / KIB as u64;
    assert!((1536..=1536 + 64).contains(&kib), "{kib}");
    let text = table(&rows);
    let last = text.lines().last().expect("a total");
    assert!(last.contains("total") && last.contains("3.5 MiB"), "{text}");
    assert!(
        text.lines()
            .next()
            .is_some_and(|line| line.contains("last used"))
    );
    assert!(text.contains("2.0 MiB"), "{text}");
}

#[test]
fn a_command_says_how_large_the_cache_was_and_is() {
    let cache = FakeCache::new();
    let ended = |counting: &Counting| {
        let counted = || counting.is_finished();
        alknet_test_support::eventually("it was counted", Duration::from_secs(60), counted);
    };
    let begin = || {
        let watch = CacheSizeMonitor::start(cache.path());
        ended(&watch.before);
        watch
    };
    let (long, none) = (Duration::from_secs(60), Duration::ZERO);
    cache.file("kernel/aaaaaaaaaaaaaaaa/bzImage", 2 * MIB, 3);
    let watch = begin();
    cache.file("kernel/bbbbbbbbbbbbbbbb/bzImage", 2 * MIB, 3);
    let text = watch.report_within(long);
    assert_eq!(text, "  cache: 2.0 MiB before, 4.0 MiB now\n");
    assert!(remembered(cache.path()).expect("just counted") >= 4 * MIB as u64);
    // If counting takes too long, the size after the build is known, or the size when the command began.
    let mut watch = begin();
    cache.file("kernel/cccccccccccccccc/bzImage", 2 * MIB, 3);
    watch.built();
    watch.built.iter().for_each(ended);
    let text = watch.report_within(none);
    assert_eq!(text, "  cache: 4.0 MiB before, 6.0 MiB now\n");
    let text = begin().report_within(none);
    let line = "  cache: 6.0 MiB before; `cargo xtask cache` counts it again\n";
    assert_eq!(text, line);
    // A size that was recorded too long ago does not count.
    date(&cache.at(REMEMBERED), 8);
    assert_eq!(remembered(cache.path()), None);
    assert_eq!(sizes(None, Some(GIB)), "  cache: 1.0 GiB now\n");
    assert_eq!(sizes(None, None), "");
}

#[test]
fn the_hint_comes_beyond_the_limit() {
    assert_eq!(hint(None), "");
    assert_eq!(hint(Some(LIMIT_BYTES)), "");
    let text = hint(Some(LIMIT_BYTES + GIB));
    assert!(
        text.contains("grown to 16.0 GiB") && text.contains("--prune"),
        "{text}"
    );
}

#[test]
fn every_kind_of_part_says_what_its_loss_costs() {
    let cache = FakeCache::new();
    for name in [
        "bin/rustc-for-aaaaaaaaaaaaaaaa",
        "binary/aaaaaaaaaaaaaaaa/alknet",
        "fuzz/corpus/frame/1",
        "fuzz/target/release/x",
        "gpu/aaaaaaaaaaaaaaaa/x",
        "image/aaaaaaaaaaaaaaaa/x",
        "kernel/aaaaaaaaaaaaaaaa/x",
        "machines/a/contents.json",
        "peer/release/x",
        &format!("{SOURCE}/x"),
        "target/debug/.fingerprint/x",
        "target/debug/incremental/x-1/y",
        "tools/a-aaaaaaaaaaaaaaaa/x",
        "vulkan/a-aaaaaaaaaaaaaaaa/x",
    ] {
        cache.file(name, KIB, 30);
    }
    cache.file("machines/a.lock", 0, 3);
    cache.unit("serde", ONE, 3);
    let text = cache.prune(&needs(&cache, &[], &[]), 1).text();
    assert_eq!(text.lines().count(), 1 + 14 + 1, "{text}");
    for line in text.lines().filter(|line| line.starts_with("  ")) {
        let (_, cost) = line.rsplit_once(": ").expect("a cost");
        assert!(cost.len() > 5, "{line}");
    }
    assert!(cache.bytes() < 200 * KIB as u64, "empty folders are left");
}

#[test]
fn builds_that_were_never_recorded_are_named() {
    let cache = FakeCache::new();
    let mut needs = needs(&cache, &[], &[]);
    needs.units.missing = vec![xtask::last_use::BuildSet::Tests];
    let text = cache.prune(&needs, 1).text();
    assert!(
        text.contains("needed: tests;") && text.contains("cargo xtask test"),
        "{text}"
    );
}

#[test]
fn sizes_are_shown_in_units_of_1024_and_rounded_down() {
    let shown = [
        (0, "0.0 KiB"),
        (4096, "4.0 KiB"),
        ((1 << 20) - 1, "1023.9 KiB"),
        (15 * GIB - 1, "14.9 GiB"),
        (15 * GIB, "15.0 GiB"),
        (u64::MAX, "17179869183.9 GiB"),
    ];
    for (bytes, text) in shown {
        assert_eq!(size(bytes), text);
    }
}

#[test]
fn a_limit_is_a_number_above_nothing() {
    assert_eq!(limit("15"), Ok(LIMIT_BYTES));
    assert_eq!(limit("0.5"), Ok(GIB / 2));
    for text in ["0", "-1", "NaN", "inf", "1e9", "15GiB", ""] {
        assert!(limit(text).is_err(), "{text}");
    }
}

#[test]
fn options_of_pruning_need_it() {
    #[derive(Debug, clap::Parser)]
    struct CacheTestCli {
        #[command(flatten)]
        arguments: CacheArgs,
    }
    let parse = |words: &[&str]| CacheTestCli::try_parse_from([&["cache"], words].concat());
    assert!(parse(&["--limit", "3"]).is_err() && parse(&["--dry-run"]).is_err());
    let usual = parse(&["--prune"]).expect("it parses").arguments;
    assert_eq!(usual.limit, LIMIT_BYTES);
    assert!(parse(&["--json"]).is_ok());
    assert!(parse(&["--prune", "--limit", "3", "--dry-run", "--json"]).is_ok());
}

#[test]
fn needs_are_ranked_last() {
    let mut ranks = [
        EvictionRank::Needed,
        EvictionRank::Unneeded,
        EvictionRank::Former,
        EvictionRank::Orphan,
    ];
    ranks.sort();
    assert_eq!(
        ranks,
        [
            EvictionRank::Orphan,
            EvictionRank::Former,
            EvictionRank::Unneeded,
            EvictionRank::Needed
        ]
    );
}
