//! The `marlin` program, as scripts and people at a terminal see it.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// A tiny model with random weights; see `tests/fixtures/README.md` at the root of the repository.
fn tiny(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures");
    root.join(name).to_str().expect("a readable path").to_owned()
}

/// One cache folder for all tests of a run: ceilings are then measured once.
fn cache() -> &'static Path {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    CACHE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-cache");
        fs::create_dir_all(&folder).unwrap();
        folder
    })
}

fn marlin(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_marlin"));
    command
        .args(args)
        .env("MARLIN_CACHE", cache())
        .env_remove("HF_ENDPOINT")
        .env_remove("MARLIN_PYPI_INDEX");
    command.stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    marlin(args).output().unwrap()
}

/// Runs with `input` on standard input.
fn run_with(args: &[&str], input: &str) -> Output {
    let mut child = marlin(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", stdout(output)))
}

/// The names of an object's fields, in alphabetical order.
fn fields(value: &Value) -> Vec<&str> {
    let mut names: Vec<&str> =
        value.as_object().expect("an object").keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// Exit code 1, nothing on standard output, and one line on standard error.
fn assert_fails(output: &Output, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(stdout(output), "");
    assert!(
        text.starts_with("error: ") && text.ends_with('\n') && text.lines().count() == 1,
        "{text}"
    );
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

// --- Usage and errors --------------------------------------------------------------------------

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_wrong() {
    for (args, part) in [
        (&["run", "--top-p", "2", "x"][..], "from 0 to 1"),
        (&["run", "--temperature", "-1", "x"], "0 or more"),
        (&["run", "--temperature", "nan", "x"], "finite"),
        (&["run", "--threads", "0", "x"], "zero"),
        (&["run", "--max-tokens", "0", "x"], "zero"),
        (&["run", "--repeat-penalty", "0", "x"], "more than 0"),
        (&["run", "--raw", "--system", "s", "x"], "cannot be used with"),
        (&["run", "--device", "abacus", "x"], "abacus"),
        (&["run", ""], "empty"),
        (&["perplexity"], "--file"),
        (&["bench", "-p", "0", "-n", "0"], "nothing to measure"),
        (&["pull", "--remove"], "MODEL"),
        (&["frobnicate"], "frobnicate"),
        (&[], "Usage"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for args in [&["--help"][..], &["run", "--help"], &["bench", "-h"], &["--version"]] {
        let output = run(args);
        assert!(
            output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty(),
            "{args:?}"
        );
    }
    let help = stdout(&run(&["run", "--help"]));
    for option in [
        "--model",
        "--device",
        "--threads",
        "--raw",
        "--max-tokens",
        "--temperature",
        "--top-k",
        "--top-p",
        "--min-p",
        "--repeat-penalty",
        "--seed",
        "--stop",
        "--ctx",
        "--json",
        "Examples:",
    ] {
        assert!(help.contains(option), "{option}");
    }
}

#[test]
fn a_missing_file_is_one_clear_line() {
    for command in [&["run", "hi", "-m"][..], &["inspect"], &["bench", "-m"], &["pull"]] {
        let args: Vec<&str> = command.iter().copied().chain(["./no/such.gguf"]).collect();
        assert_fails(&run(&args), &["./no/such.gguf", "no such file", "hint:"]);
    }
    assert_fails(
        &run(&["perplexity", "-f", "./no/such.txt", "-m", &tiny("qwen2.gguf")]),
        &["./no/such.txt"],
    );
}

#[test]
fn a_file_that_is_no_model_is_one_clear_line_whatever_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("evil\n\x1b[2J.gguf");
    let whole = fs::read(tiny("qwen2.gguf")).unwrap();
    for content in
        [&b""[..], b"GGUF", b"not a model at all", &whole[..whole.len() / 2], &whole[..100]]
    {
        fs::write(&path, content).unwrap();
        let output = run(&["run", "hi", "-m", path.to_str().unwrap()]);
        assert_fails(&output, &["evil"]);
        assert!(!stderr(&output).contains('\x1b'));
    }
}

#[test]
fn an_unknown_instruction_set_says_which_there_are() {
    let output = marlin(&["devices"]).env("MARLIN_CPU", "mmx").output().unwrap();
    assert_fails(&output, &["mmx", "portable"]);
}

// --- run ---------------------------------------------------------------------------------------

#[test]
fn standard_output_is_the_generated_text_alone() {
    let model = tiny("qwen2.gguf");
    let args = ["run", "--temperature", "0", "--max-tokens", "12", "-m", &model, "Hello"];
    let plain = run(&args);
    assert!(plain.status.success(), "{}", stderr(&plain));
    assert_eq!(stderr(&plain), "", "not a terminal, so nothing is said");
    let with_json = json(&run(&[&args[..], &["--json"]].concat()));
    assert_eq!(stdout(&plain), with_json["text"].as_str().unwrap());
    let verbose = run(&[&args[..], &["-v"]].concat());
    assert_eq!(verbose.stdout, plain.stdout);
    let totals = stderr(&verbose);
    for part in ["prompt: ", "answer: 12 tokens", "tok/s", "GB/s", "stopped: max tokens", "seed: "]
    {
        assert!(totals.contains(part), "no {part:?} in {totals}");
    }
}

#[test]
fn json_has_the_fields_that_scripts_rely_on() {
    let answer =
        json(&run(&["run", "--json", "--max-tokens", "5", "-m", &tiny("qwen2.gguf"), "Hello"]));
    assert_eq!(
        fields(&answer),
        [
            "decode_floor_pct",
            "decode_gb_s",
            "decode_tok_s",
            "generated_tokens",
            "load_s",
            "prefill_tok_s",
            "prompt_tokens",
            "stop_reason",
            "text"
        ]
    );
    assert_eq!(answer["generated_tokens"], 5);
    assert_eq!(answer["stop_reason"], "max_tokens");
    for number in ["load_s", "prefill_tok_s", "decode_tok_s", "decode_gb_s", "decode_floor_pct"] {
        assert!(answer[number].as_f64().unwrap() > 0.0, "{number}: {answer}");
    }
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_seed_another() {
    let model = tiny("llama3_rope.gguf");
    let text = |seed: &str| {
        let args = [
            "run",
            "--seed",
            seed,
            "--temperature",
            "2",
            "--top-k",
            "0",
            "--top-p",
            "1",
            "--min-p",
            "0",
        ];
        stdout(&run(&[&args[..], &["--max-tokens", "30", "-m", &model, "Hello"]].concat()))
    };
    assert_eq!(text("1"), text("1"));
    assert_ne!(text("1"), text("2"));
}

#[test]
fn a_prompt_may_come_from_standard_input() {
    let model = tiny("qwen2.gguf");
    let args = ["run", "--temperature", "0", "--max-tokens", "8", "--raw", "-m", &model];
    let given = run(&[&args[..], &["some words"]].concat());
    assert!(given.status.success());
    for output in
        [run_with(&[&args[..], &["-"]].concat(), "some words\n"), run_with(&args, "some words")]
    {
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(output.stdout, given.stdout);
    }
    assert_eq!(run_with(&args, "").status.code(), Some(2));
    assert_fails(&marlin_with_bytes(&args, b"\xff\xfe"), &["standard input"]);
}

fn marlin_with_bytes(args: &[&str], input: &[u8]) -> Output {
    let mut child = marlin(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_chat_template_changes_the_prompt_and_raw_does_not_use_it() {
    let model = tiny("qwen2.gguf");
    let tokens = |more: &[&str]| {
        let args = ["run", "--json", "--max-tokens", "1", "-m", &model, "Hello"];
        json(&run(&[&args[..], more].concat()))["prompt_tokens"].as_u64().unwrap()
    };
    assert!(tokens(&["--raw"]) < tokens(&[]));
    assert!(tokens(&[]) < tokens(&["--system", "Be brief."]));
}

#[test]
fn generation_stops_before_a_stop_text() {
    let model = tiny("qwen2.gguf");
    let args = ["run", "--temperature", "0", "--max-tokens", "40", "--raw", "-m", &model, "Hello"];
    let text = stdout(&run(&args));
    let stop: String = text.chars().skip(5).take(2).collect();
    let answer =
        json(&run(&[&args[..], &["--json", "--stop", &stop, "--stop", "never so"]].concat()));
    assert_eq!(answer["stop_reason"], "stop_string");
    assert_eq!(answer["text"].as_str().unwrap(), &text[..text.find(&stop).unwrap()]);
}

#[test]
fn a_prompt_longer_than_the_context_says_both_lengths() {
    let output =
        run(&["run", "--ctx", "4", "-m", &tiny("qwen2.gguf"), "Hello, how are you today?"]);
    assert_fails(&output, &["tokens", "holds 4", "--ctx"]);
}

#[test]
fn the_context_ends_a_generation() {
    let model = tiny("qwen2.gguf");
    let args = ["run", "--json", "--temperature", "0", "--ctx", "16", "--raw", "-m", &model, "Hi"];
    let answer = json(&run(&args));
    assert_eq!(answer["stop_reason"], "context");
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let model = tiny("qwen2.gguf");
    for args in [
        &[
            "run",
            "--max-tokens",
            "4000",
            "--ctx",
            "5000",
            "--temperature",
            "0",
            "-m",
            &model,
            "Hello",
        ][..],
        &["inspect", &model, "--metadata"],
    ] {
        let mut child = marlin(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 1];
        let mut pipe = child.stdout.take().unwrap();
        pipe.read_exact(&mut first).unwrap();
        drop(pipe);
        let output = child.wait_with_output().unwrap();
        let text = stderr(&output);
        assert!(
            output.status.success() && !text.contains("panic") && !text.contains("error"),
            "{args:?}: {text}"
        );
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_text_and_still_says_what_it_took() {
    let model = tiny("qwen2.gguf");
    let args = [
        "run",
        "-v",
        "--max-tokens",
        "1000000",
        "--ctx",
        "1000000",
        "--temperature",
        "0",
        "-m",
        &model,
        "Hello",
    ];
    let mut child = marlin(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdout.take().unwrap();
    // The first text is out, so generation is under way.
    pipe.read_exact(&mut [0; 1]).unwrap();
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    std::thread::spawn(move || std::io::copy(&mut pipe, &mut std::io::sink()));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}: {}", output.status, stderr(&output));
    assert!(stderr(&output).contains("stopped: cancelled"), "{}", stderr(&output));
}

// --- The other commands ------------------------------------------------------------------------

#[test]
fn bench_reports_speeds_beside_their_ceilings() {
    let model = tiny("qwen2.gguf");
    let args = ["bench", "-p", "16", "-n", "8", "-r", "2", "-t", "1", "-m", &model];
    let report = json(&run(&[&args[..], &["--json"]].concat()));
    for number in [
        "prefill_tok_s",
        "decode_tok_s",
        "decode_gb_s",
        "read_gb_s",
        "decode_floor_pct",
        "prefill_peak_pct",
    ] {
        assert!(report[number].as_f64().unwrap() > 0.0, "{number}: {report}");
    }
    assert_eq!(report["prefill_s"].as_array().unwrap().len(), 2);
    let table = stdout(&run(&args));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(
        lines.iter().all(|line| line.starts_with('|') && line.matches('|').count() == 9),
        "{table}"
    );
    assert!(lines[2].contains("pp16") && lines[3].contains("tg8"), "{table}");
}

#[test]
fn bench_leaves_out_what_is_not_wanted() {
    let model = tiny("qwen2.gguf");
    let report = json(&run(&["bench", "-p", "0", "-n", "4", "-r", "1", "-m", &model, "--json"]));
    assert!(report["prefill_tok_s"].is_null() && report["decode_tok_s"].is_f64(), "{report}");
}

#[test]
fn perplexity_has_the_windows_of_llama_perplexity() {
    let model = tiny("qwen2.gguf");
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/alice.txt");
    let text = text.to_str().unwrap();
    let args = ["perplexity", "-m", &model, "-f", text, "--ctx", "32", "--json"];
    let result = json(&run(&[&args[..], &["--chunks", "3"]].concat()));
    assert_eq!(fields(&result), ["chunks", "perplexity", "stderr", "tokens"]);
    assert_eq!(result["chunks"], 3);
    // Of 32 positions, 16 to 30 predict the tokens 17 to 31.
    assert_eq!(result["tokens"], 3 * 15);
    assert!(result["perplexity"].as_f64().unwrap() > 1.0, "{result}");
    assert!(result["stderr"].as_f64().unwrap() > 0.0, "{result}");
}

#[test]
fn perplexity_of_a_text_that_is_too_short_says_how_long_it_must_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("short.txt");
    fs::write(&path, "Too short.").unwrap();
    let model = tiny("qwen2.gguf");
    let args = ["perplexity", "-m", &model, "-f", path.to_str().unwrap()];
    assert_fails(&run(&args), &["1024", "tokens", "--ctx"]);
    assert_fails(&run(&[&args[..], &["--ctx", "2"]].concat()), &["a window of 2 tokens"]);
}

#[test]
fn inspect_lists_every_tensor() {
    let model = tiny("qwen2.gguf");
    let summary = json(&run(&["inspect", "--json", &model]));
    assert_eq!(summary["architecture"], "qwen2");
    let tensors = summary["tensors"].as_array().unwrap();
    let bytes: u64 = tensors.iter().map(|tensor| tensor["bytes"].as_u64().unwrap()).sum();
    assert_eq!(bytes, summary["weight_bytes"].as_u64().unwrap());
    let text = stdout(&run(&["inspect", "-m", &model, "--metadata"]));
    for tensor in tensors {
        assert!(text.contains(tensor["name"].as_str().unwrap()));
    }
    assert!(text.contains("general.architecture = "), "{text}");
}

#[test]
fn a_packed_model_is_used_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    for (name, out) in [("qwen2.gguf", "packed.gguf"), ("qwen2", "packed")] {
        let (model, out) = (tiny(name), folder.path().join(out));
        let out = out.to_str().unwrap();
        let packed = json(&run(&["pack", &model, "-o", out, "--json"]));
        assert_eq!(
            fields(&packed),
            ["bytes", "matrices", "path", "source_bytes", "unchanged", "vectors"]
        );
        assert_eq!(packed["path"], out);
        let summary = |path: &str| json(&run(&["inspect", "--json", path]));
        let (before, after) = (summary(&model), summary(out));
        assert_eq!(
            (&before["packed"], &after["packed"]),
            (&Value::Bool(false), &Value::Bool(true))
        );
        assert_eq!(before["parameters"], after["parameters"]);
        assert_eq!(packed["source_bytes"], before["weight_bytes"]);
        let answer = |path: &str| {
            let args =
                ["run", "--json", "--temperature", "0", "--max-tokens", "8", "-m", path, "hi"];
            json(&run(&args))["text"].clone()
        };
        assert_eq!(answer(&model), answer(out));
        let again = run(&["pack", &model, "-o", out]);
        assert_fails(&again, &["something there already", "--force replaces it"]);
        assert!(run(&["pack", &model, "-o", out, "--force"]).status.success());
        assert_fails(&run(&["pack", out, "-o", &format!("{out}.2")]), &["a packed model"]);
    }
}

#[test]
fn a_hugging_face_folder_works_like_a_file() {
    let folder = tiny("qwen2");
    assert_eq!(json(&run(&["inspect", "--json", &folder]))["architecture"], "qwen2");
    assert_eq!(
        json(&run(&["run", "--json", "--max-tokens", "3", "-m", &folder, "hi"]))["generated_tokens"],
        3
    );
}

#[test]
fn devices_tells_what_can_run_a_model() {
    let devices = json(&run(&["devices", "--json"]));
    let cpu = &devices["devices"][0];
    assert_eq!(cpu["name"], "cpu");
    assert!(cpu["threads"].as_u64().unwrap() > 0);
    let isas = cpu["available_isas"].as_array().unwrap();
    assert!(isas.contains(&cpu["isa"]) && isas.contains(&"portable".into()), "{cpu}");
    let portable = json(
        &marlin(&["devices", "--json"]).env("MARLIN_CPU", "portable").output().unwrap().clone(),
    );
    assert_eq!(portable["devices"][0]["isa"], "portable");
}

#[test]
fn pull_prints_the_path_and_lists_the_known_names() {
    let model = tiny("qwen2.gguf");
    assert_eq!(stdout(&run(&["pull", &model])), format!("{model}\n"));
    let list = json(&run(&["pull", "--list", "--json"]));
    assert_eq!(list["known"][0]["names"][0], "smollm2-135m");
    assert!(stdout(&run(&["pull", "--list"])).contains("Apache-2.0"));
    assert_fails(&run(&["pull", "--remove", "smollm2-135m"]), &["is not in", "--list"]);
}

/// The proxy sees which server is asked for, and refuses.
#[test]
fn the_proxy_of_the_environment_is_used() {
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = proxy.local_addr().unwrap();
    let seen = std::thread::spawn(move || {
        let (mut stream, _) = proxy.accept().unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").unwrap();
        String::from_utf8(request).unwrap()
    });
    let output = marlin(&["pull", "owner/repo"])
        .env("HTTPS_PROXY", format!("http://{address}"))
        .env_remove("ALL_PROXY")
        .env_remove("all_proxy")
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .output()
        .unwrap();
    let seen = seen.join().unwrap();
    assert!(seen.starts_with("CONNECT huggingface.co:443"), "{seen}");
    assert_fails(&output, &["huggingface.co", "proxy"]);
}

// --- chat --------------------------------------------------------------------------------------

#[test]
fn a_conversation_is_answered_saved_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("talk.json");
    let model = tiny("qwen2.gguf");
    let args = ["chat", "-m", &model, "--max-tokens", "5", "--temperature", "0", "--ctx", "500"];
    let input = format!(
        "/system Be brief.\nHello\\\nthere\n/nonsense\n/stats\n/save {0}\n/exit\nnever read\n",
        path.display()
    );
    let output = run_with(&args, &input);
    let notes = stderr(&output);
    assert!(output.status.success(), "{notes}");
    assert!(notes.contains("no such command") && notes.contains("context: "), "{notes}");
    let saved: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let messages = saved["messages"].as_array().unwrap();
    let roles: Vec<&str> =
        messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    assert_eq!(messages[1]["content"], "Hello\nthere");
    assert_eq!(
        stdout(&output).trim_end_matches('\n'),
        messages[2]["content"].as_str().unwrap().trim_end_matches('\n')
    );

    // Loaded again, the conversation goes on; and the end of the input is the end of it.
    let input = format!("/load {0}\nAnd?\n/save {0}\n", path.display());
    let output = run_with(&args, &input);
    assert!(output.status.success(), "{}", stderr(&output));
    let saved: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(saved["messages"].as_array().unwrap().len(), 5);
}

#[test]
fn a_mistake_in_a_conversation_does_not_end_it() {
    let model = tiny("qwen2.gguf");
    let args = ["chat", "-m", &model, "--max-tokens", "3", "--temperature", "0", "--ctx", "60"];
    let long = "word ".repeat(200);
    let input = format!("/load ./no/such\n/set temperature hot\n{long}\n/set max-tokens 2\nHi\n");
    let output = run_with(&args, &input);
    let notes = stderr(&output);
    assert!(output.status.success(), "{notes}");
    for part in ["./no/such", "temperature hot", "/clear"] {
        assert!(notes.contains(part), "no {part:?} in {notes}");
    }
    assert!(!output.stdout.is_empty());
}

// --- audit -------------------------------------------------------------------------------------

#[test]
fn the_auditor_is_mounted_with_its_own_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let clean = folder.path().join("clean.py");
    fs::write(&clean, "x = 1\n").unwrap();
    assert_eq!(run(&["audit", "source", clean.to_str().unwrap()]).status.code(), Some(0));
    let wasteful = folder.path().join("wasteful.py");
    let source = "import Metal\nimport struct\n\ndef dispatch(device, encoder, n):\n    params = device.newBufferWithBytes_length_options_(\n        struct.pack(\"I\", n), 4, Metal.MTLResourceStorageModeShared)\n    encoder.setBuffer_offset_atIndex_(params, 0, 0)\n";
    fs::write(&wasteful, source).unwrap();
    let output = run(&["audit", "source", "--format", "json", wasteful.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["buffers"][0]["buffer"], "params", "{report}");
    assert_eq!(run(&["audit", "explain", "XX999"]).status.code(), Some(2));
}
