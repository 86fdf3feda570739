//! The templates, and the static files of the page.

use std::sync::{LazyLock, OnceLock};

use handlebars::Handlebars;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::view::{PageSection, StatusView};

pub(crate) const STYLE: &str = include_str!("../assets/style.css");
pub(crate) const SCRIPT: &str = include_str!("../assets/live.js");

/// A rising line, in a colour that is visible on light and dark tabs.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E\
%3Cpath d='M2 12 6 6l3 3 5-7' fill='none' stroke='%23209a97' stroke-width='2.5' \
stroke-linecap='round' stroke-linejoin='round'/%3E%3C/svg%3E";

/// A version that changes with the style or the script, so that browsers may cache both.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let hash = Sha256::new().chain_update(STYLE).chain_update(SCRIPT);
    let hash = hash.finalize();
    hash.iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
});

/// A page other than the status page.
#[derive(Debug, Default, Serialize)]
pub(crate) struct MessagePage {
    pub(crate) title: String,
    /// The error that the page reports.
    pub(crate) wrong: Option<String>,
    pub(crate) text: Option<String>,
    /// The page goes to the status page by itself.
    pub(crate) refresh: bool,
    pub(crate) act: Option<ConfirmPrompt>,
    /// Whether the page has the form to sign in.
    pub(crate) entry: bool,
    pub(crate) host: String,
}

/// A question that asks to confirm an action.
#[derive(Debug, Serialize)]
pub(crate) struct ConfirmPrompt {
    pub(crate) ticket: String,
    pub(crate) verb: &'static str,
    pub(crate) who: String,
}

/// The templates, which are parsed when the first page is written: parsing them takes 23 million
/// instructions.
#[derive(Debug)]
pub(crate) struct Templates(OnceLock<Handlebars<'static>>);

impl Templates {
    pub(crate) fn new() -> Self {
        Self(OnceLock::new())
    }

    fn read() -> Handlebars<'static> {
        let mut all = Handlebars::new();
        for (name, text) in [
            ("page", include_str!("../assets/page.hbs")),
            ("plain", include_str!("../assets/plain.hbs")),
            ("section", include_str!("../assets/section.hbs")),
        ] {
            if let Err(error) = all.register_template_string(name, text) {
                // Only a fault in the program causes this, and every test of the page would find
                // it.
                tracing::error!(%error, name, "a template cannot be read");
            }
        }
        all
    }

    pub(crate) fn page(&self, view: &StatusView) -> String {
        self.rendered("page", view)
    }

    pub(crate) fn section(&self, section: &PageSection) -> String {
        self.rendered("section", section)
    }

    pub(crate) fn plain(&self, plain: &MessagePage) -> String {
        self.rendered("plain", plain)
    }

    fn rendered(&self, name: &str, data: &impl Serialize) -> String {
        let mut data = json!(data);
        if let Value::Object(members) = &mut data {
            members.insert("icon".to_owned(), ICON.into());
            members.insert("version".to_owned(), VERSION.as_str().into());
        }
        let all = self.0.get_or_init(Self::read);
        all.render(name, &data).unwrap_or_else(|error| {
            tracing::error!(%error, name, "a page cannot be written");
            "<!DOCTYPE html><title>alknet</title><p>The page failed; the log says more.".to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use crate::gather::{PageCallResult, StatusSnapshot};
    use crate::history::{MetricsHistory, MetricsSample};
    use crate::view::view;

    use super::*;

    const HOSTILE: &str = "<script>alert(1)</script>\"'`=&\u{202e}{{name}}";

    fn hostile() -> StatusSnapshot {
        let info = json!({
            "name": HOSTILE, "identity": HOSTILE, "time": HOSTILE,
            "problems": [{ "code": HOSTILE, "text": HOSTILE, "hint": HOSTILE }],
            "memory": { "total_bytes": 100, "available_bytes": 5 },
            "listen": { "alpns": [HOSTILE] },
            "update": { "state": "failed", "last": { "outcome": "failed", "version": HOSTILE,
                "reason": HOSTILE, "stage": HOSTILE, "problems": [HOSTILE] } },
        });
        let peers = json!({ "peers": [{ "peer_id": HOSTILE, "display_name": HOSTILE,
            "scopes": [HOSTILE], "connections": [{ "addr": HOSTILE }] }] });
        let log = json!([{ "time": HOSTILE, "level": HOSTILE, "target": HOSTILE,
            "message": HOSTILE }]);
        let sessions = json!({ "sessions": [{ "session": 1, "tenant": HOSTILE }] });
        let operations = json!({ "operations": [{ "name": HOSTILE }] });
        StatusSnapshot {
            info: PageCallResult::Answer(info),
            peers: PageCallResult::Answer(peers),
            log: PageCallResult::Answer(log),
            sessions: PageCallResult::Answer(sessions),
            operations: PageCallResult::Answer(operations),
            workers: PageCallResult::Answer(json!({ "workers": { HOSTILE: 1 } })),
            vault: PageCallResult::Failed(HOSTILE.to_owned()),
            compute: PageCallResult::Answer(json!({ "adapter": { "name": HOSTILE } })),
            metrics: PageCallResult::Answer(json!({ "values": {} })),
        }
    }

    #[test]
    fn nothing_that_others_wrote_is_markup() {
        let templates = Templates::new();
        let view = view(&hostile(), &MetricsHistory::default(), HOSTILE);
        let page = templates.page(&view);
        // The one script is the page's own.
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        assert!(!page.contains('\u{202e}') && !page.contains("style="));
        // A text that is no time is not one for the script either.
        assert!(!page.contains("<time"), "{page}");
        for section in &view.sections {
            let inner = templates.section(section);
            assert!(page.contains(inner.trim()), "{} differs", section.id);
        }
        let plain = templates.plain(&MessagePage {
            title: HOSTILE.to_owned(),
            wrong: Some(HOSTILE.to_owned()),
            host: HOSTILE.to_owned(),
            entry: true,
            act: Some(ConfirmPrompt {
                ticket: HOSTILE.to_owned(),
                verb: "Do",
                who: HOSTILE.to_owned(),
            }),
            ..MessagePage::default()
        });
        assert!(!plain.contains("<script"));
    }

    #[test]
    fn the_page_has_what_readers_and_keyboards_need() {
        let page = Templates::new().page(&view(&hostile(), &MetricsHistory::default(), "box"));
        for part in [
            "<html lang=\"en\">",
            "<main id=\"main\">",
            "<nav aria-label=",
            "href=\"#main\"",
            "<caption>",
            "scope=\"row\"",
            "<h1>",
            "name=\"viewport\"",
        ] {
            assert!(page.contains(part), "{part} is missing");
        }
        // Leaving is all that can be sent.
        assert_eq!(page.matches("<form").count(), 1);
        assert!(page.contains("action=\"/status/leave\""));
        for other in ["http://", "https://", "//cdn"] {
            let own = page.replace("http://www.w3.org/2000/svg", "");
            assert!(!own.contains(other), "the page asks others for something");
        }
    }

    #[test]
    fn times_are_marked_for_the_script_and_have_their_zone_without_it() {
        let time = "2026-11-23T00:47:44.203Z";
        let gathered = StatusSnapshot {
            info: PageCallResult::Answer(json!({ "time": time })),
            log: PageCallResult::Answer(json!([{ "time": time, "level": "info" }])),
            ..StatusSnapshot::default()
        };
        let page = Templates::new().page(&view(&gathered, &MetricsHistory::default(), "box"));
        let shown = format!("datetime=\"{time}\">2026-11-23 00:47:44 UTC</time>");
        assert_eq!(page.matches(&shown).count(), 2, "{page}");
        assert_eq!(page.matches("<time").count(), 2, "{page}");
    }

    #[test]
    fn a_plot_has_its_unit_both_axes_and_a_legend() {
        let (history, start) = (MetricsHistory::default(), Instant::now());
        for n in 0..3u32 {
            let sample = MetricsSample {
                calls: f64::from(n * 40),
                errors: f64::from(n * 10),
                ..MetricsSample::default()
            };
            history.add(start + Duration::from_secs(5) * n, sample);
        }
        let gathered = StatusSnapshot {
            metrics: PageCallResult::Answer(json!({ "values": {} })),
            ..StatusSnapshot::default()
        };
        let page = Templates::new().page(&view(&gathered, &history, "box"));
        let figure = page.split("<figure>").nth(1).unwrap_or_default();
        let figure = figure.split("</figure>").next().unwrap_or_default();
        for part in [
            "<figcaption>Calls <span>per second</span></figcaption>",
            "d=\"M1 4H27\"></path></svg>all <b>8/s</b></li>",
            "<path class=\"line bad\" d=\"M1 4H27\"></path></svg>failed: many <b>2/s</b></li>",
            "<span>10</span><span>5</span><span>0</span>",
            "<span>10 s ago</span><span>5 s ago</span><span>now</span>",
            "aria-label=\"Calls in the last 10 s: all 8/s now, failed: many 2/s now; at most 8/s\"",
        ] {
            assert!(figure.contains(part), "{part} is missing: {figure}");
        }
        assert_eq!(figure.matches("<polyline").count(), 2);
        assert!(page.contains("<p class=\"alarm\">Many calls fail: 20 of 80"));
    }

    #[test]
    fn labels_are_words_that_a_reader_knows_without_the_docs() {
        let templates = Templates::new();
        let info = json!({ "config": { "generation": 3 } });
        let peers = json!({ "peers": [{ "enabled": false, "scopes": ["fs:read"] }] });
        let gathered = StatusSnapshot {
            info: PageCallResult::Answer(info),
            peers: PageCallResult::Answer(peers),
            ..StatusSnapshot::default()
        };
        let page = templates.page(&view(&gathered, &MetricsHistory::default(), "box"));
        for label in [
            ">Sign out</button>",
            "<dt>Configuration generation</dt>",
            "<td>disabled</td>",
            "<th scope=\"col\">Scopes: what it may call</th>",
            "No problems",
        ] {
            assert!(page.contains(label), "{label} is missing: {page}");
        }
        let entry = templates.plain(&MessagePage {
            entry: true,
            ..MessagePage::default()
        });
        assert!(entry.contains(">Sign in</button>"), "{entry}");
    }

    #[test]
    fn what_the_browser_gets_is_small() {
        let assets = [
            STYLE,
            SCRIPT,
            include_str!("../assets/page.hbs"),
            include_str!("../assets/plain.hbs"),
            include_str!("../assets/section.hbs"),
        ];
        let bytes: usize = assets.iter().map(|asset| asset.len()).sum();
        assert!(bytes < 40_000, "{bytes} bytes");
    }
}
