use std::fs;

use super::*;

const DISK_BYTES: u64 = 1 << 20;

struct RecordBench {
    dir: tempfile::TempDir,
}

impl RecordBench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("the temporary directory is writable");
        disk::blank(&dir.path().join("base"), DISK_BYTES).expect("the directory is ours");
        Self { dir }
    }

    fn recording(&self, events: Vec<DiskEvent>) -> DiskRecording {
        DiskRecording {
            base: self.dir.path().join("base"),
            events,
        }
    }

    fn cut(&self, recording: &DiskRecording, at: usize, seed: u64) -> (CutSummary, Vec<u8>) {
        let image = self.dir.path().join("image");
        let cut = recording
            .cut(at, seed, &image)
            .expect("the directory is ours");
        (cut, fs::read(image).expect("just made"))
    }
}

fn write(offset: u64, byte: u8, length: usize) -> DiskEvent {
    DiskEvent::Write {
        offset,
        data: vec![byte; length].into(),
        fua: false,
    }
}

#[test]
fn what_was_flushed_is_there_whatever_the_seed() {
    let bench = RecordBench::new();
    let recording = bench.recording(vec![write(0, 1, 8192), DiskEvent::Flush, write(0, 2, 8192)]);
    for seed in 0..50 {
        let (_, image) = bench.cut(&recording, 2, seed);
        assert!(
            image[..8192].iter().all(|byte| *byte == 1 || *byte == 2),
            "seed {seed}"
        );
        assert!(image[8192..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_flush_under_way_promises_nothing() {
    let bench = RecordBench::new();
    let recording = bench.recording(vec![write(0, 1, 512), DiskEvent::Flush]);
    let lost = (0..50)
        .filter(|seed| bench.cut(&recording, 1, *seed).1[0] == 0)
        .count();
    assert!(
        (1..50).contains(&lost),
        "sometimes there and sometimes not, {lost} of 50 lost"
    );
}

#[test]
fn a_write_with_fua_is_there_once_it_was_answered() {
    let bench = RecordBench::new();
    let fua = DiskEvent::Write {
        offset: 4096,
        data: vec![7; 512].into(),
        fua: true,
    };
    let recording = bench.recording(vec![write(0, 1, 512), fua]);
    for seed in 0..50 {
        assert_eq!(bench.cut(&recording, 2, seed).1[4096], 7, "seed {seed}");
    }
    assert!(
        (0..50).any(|seed| bench.cut(&recording, 1, seed).1[4096] == 0),
        "not before"
    );
}

#[test]
fn unflushed_writes_are_kept_dropped_and_torn_between_sectors() {
    let bench = RecordBench::new();
    let recording = bench.recording((0..20).map(|n| write(n * 16384, 9, 16384)).collect());
    let mut all = CutSummary::default();
    for seed in 0..20 {
        let (cut, image) = bench.cut(&recording, recording.len(), seed);
        for sector in image.chunks(512) {
            assert!(
                sector.iter().all(|byte| *byte == sector[0]),
                "no sector is torn"
            );
        }
        all = CutSummary {
            whole: all.whole + cut.whole,
            torn: all.torn + cut.torn,
            dropped: all.dropped + cut.dropped,
        };
    }
    assert!(
        all.whole > 20 && all.torn > 20 && all.dropped > 20,
        "{all:?}"
    );
}

#[test]
fn each_write_is_cut_before_it_within_it_and_after_it() {
    let bench = RecordBench::new();
    let recording = bench.recording(vec![
        write(0, 1, 512),
        write(512, 2, 1536),
        DiskEvent::Flush,
        write(0, 3, 512),
    ]);
    let image = bench.dir.path().join("image");
    let mut seen = Vec::new();
    let cuts = recording.cut_each(&[1, 3], &image, &mut |moment, part| {
        let bytes = fs::read(&image).expect("just made");
        let sectors = [0, 512, 1024, 1536].map(|at| bytes[at]);
        seen.push((moment, part, sectors));
    });
    assert_eq!(
        seen,
        [
            (1, WrittenPart::Nothing, [1, 0, 0, 0]),
            (1, WrittenPart::Half, [1, 2, 0, 0]),
            (1, WrittenPart::Whole, [1, 2, 2, 2]),
            (3, WrittenPart::Nothing, [1, 2, 2, 2]),
            (3, WrittenPart::Whole, [3, 2, 2, 2]),
        ]
    );
    assert_eq!(cuts.expect("the directory is ours"), seen.len());
}

#[test]
fn the_same_seed_makes_the_same_image() {
    let bench = RecordBench::new();
    let recording = bench.recording((0..50).map(|n| write(n * 8192, 3, 8192)).collect());
    let images: Vec<_> = [5, 5, 6].map(|seed| bench.cut(&recording, 40, seed)).into();
    assert_eq!(images[0], images[1]);
    assert_ne!(images[0].1, images[2].1);
}

#[test]
fn zeroes_and_trims_are_recorded() {
    let bench = RecordBench::new();
    let zero = DiskEvent::Zero {
        offset: 512,
        length: 1024,
        fua: true,
    };
    let recording = bench.recording(vec![write(0, 1, 4096), DiskEvent::Flush, zero]);
    let (_, image) = bench.cut(&recording, 3, 0);
    assert_eq!(
        (image[511], image[512], image[1535], image[1536]),
        (1, 0, 0, 1)
    );
}

#[test]
fn a_moment_beyond_the_end_is_the_end() {
    let bench = RecordBench::new();
    let recording = bench.recording(vec![write(0, 1, 512), DiskEvent::Flush]);
    assert_eq!(bench.cut(&recording, usize::MAX, 1).1[0], 1);
}

#[test]
fn a_disk_that_is_held_answers_nothing_until_it_is_released() {
    let bench = RecordBench::new();
    let recorder = DiskRecorder::serve(&bench.dir.path().join("base")).expect("the base is there");
    recorder.hold();
    let live = recorder.live.clone();
    let (answer, answered) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        answer.send(()).expect("the test waits");
        live.read(0, &mut [0; 512]).expect("it is long enough");
        answer.send(()).expect("the test waits");
    });
    answered.recv().expect("it begins");
    assert!(answered.try_recv().is_err());
    recorder.release();
    answered.recv().expect("it is answered");
    reader.join().expect("it ended");
}

#[test]
fn a_write_that_touches_refused_bytes_changes_and_records_nothing() {
    let bench = RecordBench::new();
    let recorder = DiskRecorder::serve(&bench.dir.path().join("base")).expect("the base is there");
    recorder.refuse_writes(4096..8192);
    let write = |offset, length| recorder.live.write(offset, vec![1; length], false);
    for (offset, length, is_taken) in [
        (0, 4096, true),
        (3584, 1024, false),
        (4096, 512, false),
        (7680, 1024, false),
        (8192, 512, true),
    ] {
        let written = write(offset, length);
        assert_eq!(written.is_ok(), is_taken, "{length} bytes at {offset}");
    }
    let zeroed = recorder.live.zero(0, DISK_BYTES, false);
    zeroed.expect_err("it touches the refused bytes");
    assert_eq!(recorder.recording().len(), 2);
    let image = || fs::read(recorder.image()).expect("it is served");
    assert!(image()[4096..8192].iter().all(|byte| *byte == 0));
    recorder.refuse_writes(0..0);
    write(4096, 512).expect("no byte is refused any more");
    assert_eq!(image()[4096], 1);
}

#[test]
fn a_dropped_recorder_frees_its_thread_and_files() {
    let bench = RecordBench::new();
    let recorder = DiskRecorder::serve(&bench.dir.path().join("base")).expect("the base is there");
    let (socket, live) = (recorder.socket().to_owned(), Arc::downgrade(&recorder.live));
    drop(recorder);
    assert!(!socket.exists());
    while live.upgrade().is_some() {
        std::thread::yield_now();
    }
}
