use super::super::node_book::NamedNode;
use super::*;

const LOCAL: &str = "192.0.2.1:4433";

fn target(key: u8) -> String {
    let key = alknet_core::PeerKey::Ed25519([key; 32]);
    format!("{key}@192.0.2.7:443")
}

fn names(default: Option<&str>, local: Option<&str>) -> NodeNames {
    let mut book = NodeBook::default();
    let direct = |key| NamedNode::direct(&target(key).parse().expect("a target"));
    for (name, node) in [
        ("attic", direct(1)),
        ("edge-1", direct(2)),
        ("oven", NamedNode::behind("attic", "kitchen")),
    ] {
        book.add(name, node).expect("a name");
    }
    book.set_default(default).expect("it is there");
    let local = local.map(str::to_owned);
    NodeNames {
        book: Ok(book),
        local: Ok(local),
    }
}

#[test]
fn an_address_needs_no_file() {
    let failed = || CommandError::local("the file is damaged");
    let names = NodeNames {
        book: Err(failed()),
        local: Err(failed()),
    };
    let at = target(1);
    assert_eq!(
        routed(&names, [Some(&at), None, None]),
        Some((at.clone(), None))
    );
    let peer = HubPeerArgs::default();
    for node in [None, Some("attic")] {
        assert_eq!(names.route(node, &peer), Err(failed()), "{node:?}");
    }
}

/// What is dialled, and the peer that is asked.
fn routed(names: &NodeNames, words: [Option<&str>; 3]) -> Option<(String, Option<String>)> {
    let [node, peer, via] = words;
    let peer = HubPeerArgs {
        peer: peer.map(str::to_owned),
        via: via.map(str::to_owned),
    };
    let route = names.route(node, &peer).expect("it is a node");
    route.map(|route| (route.target.to_string(), route.peer))
}

#[test]
fn a_node_is_named_in_every_form() {
    let names = names(None, None);
    let attic = (target(1), None);
    let kitchen = (target(1), Some("kitchen".to_owned()));
    for (words, expected) in [
        ([Some("attic"), None, None], &attic),
        ([Some(target(1).as_str()), None, None], &attic),
        (
            [Some(format!("alknet:{}", target(1)).as_str()), None, None],
            &attic,
        ),
        ([Some("oven"), None, None], &kitchen),
        ([Some("kitchen@attic"), None, None], &kitchen),
        (
            [Some(format!("kitchen@{}", target(1)).as_str()), None, None],
            &kitchen,
        ),
        ([Some("attic"), Some("kitchen"), None], &kitchen),
        ([Some("kitchen"), None, Some("attic")], &kitchen),
        ([Some("oven"), None, Some("attic")], &kitchen),
    ] {
        assert_eq!(routed(&names, words).as_ref(), Some(expected), "{words:?}");
    }
}

#[test]
fn without_a_node_the_default_counts_and_then_the_one_that_runs_here() {
    let local = (LOCAL.to_owned(), None);
    let none = [None, None, None];
    assert_eq!(routed(&names(None, None), none), None);
    assert_eq!(routed(&names(None, Some(LOCAL)), none), Some(local));
    let both = names(Some("edge-1"), Some(LOCAL));
    assert_eq!(routed(&both, none), Some((target(2), None)));
    let worker = names(Some("oven"), Some(LOCAL));
    let kitchen = (target(1), Some("kitchen".to_owned()));
    assert_eq!(routed(&worker, none), Some(kitchen.clone()));
    // The default is the hub.
    let hub = names(Some("attic"), None);
    assert_eq!(routed(&hub, [None, Some("kitchen"), None]), Some(kitchen));
    assert_eq!(
        routed(&names(None, None), [None, Some("kitchen"), None]),
        None
    );
}

#[test]
fn a_hub_behind_a_hub_is_refused() {
    let names = names(Some("oven"), None);
    for [node, peer, via] in [
        [Some("oven"), Some("hall"), None],
        [None, Some("hall"), None],
        [Some("hall"), None, Some("oven")],
        [Some("hall@oven"), None, None],
        [None, None, Some("attic")],
        [Some("@attic"), None, None],
    ] {
        let peer = HubPeerArgs {
            peer: peer.map(str::to_owned),
            via: via.map(str::to_owned),
        };
        let refused = names.route(node, &peer).expect_err("no route");
        assert_eq!(refused.exit, CommandExit::Usage, "{refused}");
    }
}

#[test]
fn a_key_without_its_kind_is_no_peer_of_a_hub() {
    let names = names(None, None);
    let hex = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let base32 = "25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena";
    for key in [hex, &hex.to_uppercase(), base32, &base32.to_uppercase()] {
        for hub in ["node.example", "192.0.2.7:443", "attic"] {
            let text = format!("{key}@{hub}");
            let refused = names.resolve(&text).expect_err(&text);
            assert_eq!(refused.exit, CommandExit::Usage, "{refused}");
            let right = format!("ed25519:{key}@{hub}");
            assert!(refused.message.contains(&right), "{refused}");
            assert!(worker_of(&text).is_err(), "{text}");
        }
    }
    // An id that a hub makes, and a long name.
    for peer in ["p01aryz6s4100000000000000000", &"a".repeat(63)] {
        let text = format!("{peer}@attic");
        let route = names.resolve(&text).expect("it is a peer");
        assert_eq!(route.peer.as_deref(), Some(peer));
    }
}

#[test]
fn a_worker_with_a_name_is_not_looked_for_at_another_hub() {
    let names = names(None, None);
    let via = |node: &str, hub: &str| {
        let peer = HubPeerArgs {
            peer: None,
            via: Some(hub.to_owned()),
        };
        names.route_to(node, &peer)
    };
    for hub in ["edge-1", "hub.example", target(3).as_str()] {
        let refused = via("oven", hub).expect_err(hub);
        assert_eq!(refused.exit, CommandExit::Usage, "{refused}");
        assert!(refused.message.contains("'attic'"), "{refused}");
        // A word that has no meaning here is the peer's name there.
        assert!(via("kitchen", hub).is_ok(), "{hub}");
    }
    // The same hub by its key.
    let route = via("oven", &target(1)).expect("the same hub");
    assert_eq!(route.peer.as_deref(), Some("kitchen"));
}

/// A name that is not known may be a host's: the dial says whether it is, and the error what is known.
#[test]
fn an_error_says_which_names_are_known() {
    let route = names(None, None).resolve("atic").expect("it may be a host");
    assert_eq!(route.target.address(), "atic:443");
    let lost = CommandError::new(CommandExit::Unreachable, "UNAVAILABLE", "no address");
    let said = route.explained(lost).message;
    assert_eq!(
        said,
        "'atic' was taken for a NODE: no node is called 'atic' here; did you mean 'attic'? Known are attic, \
         edge-1, oven; as the name of a host: no address"
    );
    let unlike = names(None, None).resolve("lamp").expect("it may be a host");
    let hint = unlike.hint().unwrap_or_default();
    assert!(
        hint.ends_with("here; known are attic, edge-1, oven"),
        "{hint}"
    );
    let known = names(None, None).resolve("attic").expect("it is known");
    let lost = CommandError::new(CommandExit::Unreachable, "UNAVAILABLE", "no address");
    assert_eq!(known.explained(lost.clone()), lost);
}

#[test]
fn another_key_than_the_pinned_one_is_answered_with_the_commands_that_pin_it() {
    let names = names(None, None);
    let said = |node: &str| {
        let other = CommandError::new(CommandExit::Unreachable, "PIN_MISMATCH", "another key");
        let route = names.resolve(node).expect("a node");
        route.explained(other).further.concat()
    };
    let named = said("attic");
    let commands = "alknet node remove attic, then alknet node add attic KEY@192.0.2.7:443";
    assert!(named.ends_with(commands), "{named}");
    let address = said(&target(1));
    assert!(address.ends_with(" KEY@192.0.2.7:443"), "{address}");
    assert!(!address.contains("node remove"), "{address}");
}

fn args(node: Option<&str>, state: &Path) -> NodeArgs {
    NodeArgs {
        node: node.map(str::to_owned),
        peer: HubPeerArgs::default(),
        dial: DialArgs {
            state: StateArgs {
                state: Some(state.to_owned()),
            },
            carriage: None,
            timeout: std::time::Duration::from_secs(1),
            anonymous: false,
        },
        meant: None,
    }
}

#[test]
fn a_single_word_is_the_one_that_the_verb_needs() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    NodeBook::change(dir.path(), |book| {
        book.add(
            "attic",
            NamedNode::direct(&target(1).parse().expect("a target")),
        )
    })
    .expect("a writable directory");
    let word = |node, word: Option<&str>| {
        let word = word.map(str::to_owned);
        let taken = args(node, dir.path()).with_word(word, "FILE", "the script");
        taken.map(|(args, word)| (args.node, word))
    };
    let both = (Some("attic".to_owned()), "a.js".to_owned());
    assert_eq!(word(Some("attic"), Some("a.js")), Ok(both));
    assert_eq!(word(Some("a.js"), None), Ok((None, "a.js".to_owned())));
    let at = target(3);
    for node in ["attic", &at] {
        let missing = word(Some(node), None).expect_err("a node alone").message;
        assert!(missing.starts_with("FILE is missing behind"), "{missing}");
    }
    assert!(word(None, None).is_err());
}
