//! Static files, with curl.

use std::os::unix::fs::symlink;

use alknet_tests::{TestBench, WebNode};

#[test]
fn files_are_served_and_nothing_beside_them() {
    let bench = TestBench::new();
    let folder = bench.path().join("www");
    std::fs::create_dir_all(folder.join("docs/.git")).expect("room");
    let write = |name: &str, text: &[u8]| std::fs::write(folder.join(name), text).expect("room");
    write("index.html", b"<h1>here</h1>");
    write("docs/index.html", b"<h1>docs</h1>");
    write("docs/.git/config", b"secret");
    write(".env", b"secret");
    write("app.js", b"let a = 1;");
    write("app.js.gz", b"packed");
    let large: Vec<u8> = (0..3 << 20).map(|n: u32| (n % 251) as u8).collect();
    write("large.bin", &large);
    std::fs::write(bench.path().join("outside"), b"secret").expect("room");
    symlink("../outside", folder.join("link")).expect("a link");
    symlink("app.js", folder.join("inside.js")).expect("a link");
    let config = format!("[http]\npage = false\nsite = \"{}\"\n", folder.display());
    let web = WebNode::start(&bench, &config);
    for version in ["--http1.1", "--http2"] {
        let told = web.curl("/", &[version]);
        assert_eq!(
            (told.status, told.body.as_slice()),
            (200, &b"<h1>here</h1>"[..])
        );
        assert_eq!(
            told.header("content-type"),
            Some("text/html; charset=utf-8")
        );
        let told = web.curl("/large.bin", &[version]);
        assert!(told.body == large, "{} bytes came", told.body.len());
        let told = web.curl("/large.bin", &[version, "--range", "1000000-1000009"]);
        assert_eq!(
            (told.status, told.body.as_slice()),
            (206, &large[1_000_000..1_000_010])
        );
        assert_eq!(
            told.header("content-range"),
            Some("bytes 1000000-1000009/3145728")
        );
        let told = web.curl("/large.bin", &[version, "--range", "9000000-"]);
        assert_eq!(
            (told.status, told.header("content-range")),
            (416, Some("bytes */3145728"))
        );
        let head = web.curl("/large.bin", &[version, "--head"]);
        assert_eq!(
            (head.status, head.header("content-length")),
            (200, Some("3145728"))
        );
    }
    let moved = web.curl("/docs", &[]);
    assert_eq!(
        (moved.status, moved.header("location")),
        (308, Some("/docs/"))
    );
    assert_eq!(web.curl("/docs/", &[]).body, b"<h1>docs</h1>");
    assert_eq!(web.curl("/inside.js", &[]).body, b"let a = 1;");
    let packed = web.curl("/app.js", &["--header", "Accept-Encoding: gzip"]);
    assert_eq!(
        (packed.header("content-encoding"), packed.body.as_slice()),
        (Some("gzip"), &b"packed"[..])
    );
    assert_eq!(packed.header("vary"), Some("accept-encoding"));
    let plain = web.curl("/app.js", &[]);
    assert_eq!(
        (plain.header("content-encoding"), plain.header("vary")),
        (None, Some("accept-encoding"))
    );
    let etag = plain.header("etag").expect("a version").to_owned();
    let known = format!("If-None-Match: {etag}");
    assert_eq!(web.curl("/app.js", &["--header", &known]).status, 304);
    std::fs::write(folder.join("app.js"), b"let a = 2;").expect("room");
    let changed = web.curl("/app.js", &["--header", &known]);
    assert_eq!(
        (changed.status, changed.body.as_slice()),
        (200, &b"let a = 2;"[..])
    );
    for path in [
        "/.env",
        "/docs/.git/config",
        "/link",
        "/../outside",
        "/%2e%2e/outside",
        "/docs/..%2f..%2foutside",
        "/docs//../../outside",
        "/%00",
        "/app.js/x",
    ] {
        let told = web.curl(path, &[]);
        assert_eq!(told.status, 404, "{path}");
        assert!(!told.body.windows(6).any(|w| w == b"secret"), "{path}");
    }
    assert_eq!(web.curl("/app.js", &["--request", "POST"]).status, 404);
}
