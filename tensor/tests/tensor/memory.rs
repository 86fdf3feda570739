//! What reading a header may cost: at most eight times its bytes, whatever they say.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use alknet_tensor::{ContainerLimits, Meta};

/// Bytes that are held for each byte of a header.
pub(crate) const TIMES: usize = 8;
/// And for an error's text, and for what is smaller than any header of interest.
pub(crate) const BESIDE: usize = 4096;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, counting what this thread holds.
struct HeapCounter;

#[global_allocator]
static COUNTING: HeapCounter = HeapCounter;

fn count(by: isize) {
    let held = HELD.get() + by;
    HELD.set(held);
    MOST.set(MOST.get().max(held));
}

// SAFETY: everything is handed on to the system's allocator as it came; counting allocates nothing,
// since the counters are plain numbers made before the thread ran.
unsafe impl GlobalAlloc for HeapCounter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller keeps what the system asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be there while bytes are moved.
        count(size.cast_signed());
        count(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// What `work` makes, and the most bytes that were held meanwhile beyond those before.
pub(crate) fn most_held<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    MOST.set(before);
    let made = work();
    let most = MOST.get() - before;
    (made, most.unsigned_abs())
}

/// Bytes held at most while `header` is read, for each of its own.
#[track_caller]
fn measure(what: &str, header: &str, data: u64) {
    let limits = ContainerLimits::safetensors();
    let (meta, most) = most_held(|| Meta::parse(header.as_bytes(), data, &limits));
    let times = most as f64 / header.len() as f64;
    let outcome = meta.map(|_| "read").map_err(|error| error.code());
    eprintln!(
        "figure header memory, {what}: {times:.2} times {} bytes ({outcome:?})",
        header.len()
    );
    assert!(
        most <= TIMES * header.len() + BESIDE,
        "{what}: {most} bytes of {}",
        header.len()
    );
}

#[test]
fn headers_cost_what_is_promised() {
    let n = 20_000;
    let list = |one: &dyn Fn(usize) -> String| {
        let all: Vec<_> = (0..n).map(one).collect();
        all.join(",")
    };
    let entry = |at: usize| format!(r#""{at:x}":{{"dtype":"","shape":[],"data_offsets":[0,0]}}"#);
    measure("smallest entries", &format!("{{{}}}", list(&entry)), 0);
    let ranked = |at: usize| {
        let shape = ["0"; 32].join(",");
        format!(r#""{at:x}":{{"dtype":"","shape":[{shape}],"data_offsets":[0,0]}}"#)
    };
    measure("many dimensions", &format!("{{{}}}", list(&ranked)), 0);
    let pair = |at: usize| format!(r#""{at:x}":"""#);
    measure(
        "metadata",
        &format!(r#"{{"__metadata__":{{{}}}}}"#, list(&pair)),
        0,
    );
    let key = |at: usize| format!(r#""{at:x}":0"#);
    let others = format!(
        r#"{{"a":{{"dtype":"U8","shape":[0],"data_offsets":[0,0],{}}}}}"#,
        list(&key)
    );
    measure("unknown members", &others, 0);
    let nested = format!(
        r#"{{"a":{{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":{{{}}}}}}}"#,
        list(&key)
    );
    measure("unknown objects", &nested, 0);
    measure(
        "one long name",
        &format!(r#"{{"{}":0}}"#, "x".repeat(1 << 20)),
        0,
    );
    let long = "\\u0001".repeat(200_000);
    let wrong = format!(r#"{{"a":{{"shape":"{long}"}}}}"#);
    measure("a long text in the wrong place", &wrong, 0);

    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let metatensor = |index: &str, entries: &str| {
        let index = quote(index);
        format!(r#"{{"__metadata__":{{"metatensor":"1","mt.index":{index}}},{entries}}}"#)
    };
    let flat = |at: usize| format!(r#""{at:x}":{{"kind":"flat"}}"#);
    let order = |at: usize| format!(r#""{at:x}""#);
    let index = format!(
        r#"{{"tensors":{{{}}},"order":[{}]}}"#,
        list(&flat),
        list(&order)
    );
    measure("an index", &metatensor(&index, &list(&entry)), 0);
    let field = |at: usize| format!(r#"{{"path":"{at:x}","off":{at},"type":"Int8"}}"#);
    let index = format!(
        r#"{{"tensors":{{"s":{{"kind":"struct","def":"","stride":{n},"count":0,"fields":[{}]}}}},"order":["s"]}}"#,
        list(&field)
    );
    let entry = format!(r#""s":{{"dtype":"U8","shape":[0,{n}],"data_offsets":[0,0]}}"#);
    measure("fields", &metatensor(&index, &entry), 0);
    let leaf = |at: usize| format!(r##""{at:x}":"#s""##);
    let one = r#""tensors":{"s":{"kind":"flat"}},"order":["s"]"#;
    let index = format!(r#"{{{one},"root":{{{}}}}}"#, list(&leaf));
    measure("a nested view", &metatensor(&index, &entry), 0);
    let again = vec![r#""s""#; n].join(",");
    let index = format!(r#"{{"tensors":{{"s":{{"kind":"flat"}}}},"order":[{again}]}}"#);
    measure("a false order", &metatensor(&index, &entry), 0);
}
