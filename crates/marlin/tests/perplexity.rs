//! The library's perplexity against one that is computed here from logits, position by position.

use std::ops::ControlFlow;
use std::path::Path;

use metal_marlin::perplexity::{PerplexityError, PerplexityOptions, perplexity};
use metal_marlin::{KvFormat, Model, ModelOptions, Session, SessionOptions};

fn session(model: &str, ctx: usize) -> Session {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/architectures");
    let model = Model::load(&root.join(model), &ModelOptions::default()).unwrap();
    model
        .session(SessionOptions {
            ctx,
            batch: 8,
            outputs: 5,
            kv: KvFormat::F32,
            ..Default::default()
        })
        .unwrap()
}

fn text_tokens(session: &Session, count: usize) -> Vec<u32> {
    let text = include_str!("../../../tests/data/alice.txt");
    let mut tokens = session.model().tokenizer().encode(text, true, false).unwrap();
    tokens.truncate(count);
    tokens
}

/// llama-perplexity's rule, written down once more: of each window of `ctx` tokens from an empty
/// context, the positions from `ctx / 2` to `ctx - 2` predict the token after them.
fn expected(session: &mut Session, tokens: &[u32], ctx: usize) -> (f64, usize) {
    let special = session.model().tokenizer().special().clone();
    let mut losses = Vec::new();
    for window in tokens.chunks_exact(ctx) {
        let mut window = window.to_vec();
        if special.add_bos {
            window[0] = special.bos.unwrap();
        }
        let logits = session.logits(&window, 1).unwrap();
        for at in ctx / 2..ctx - 1 {
            let exps: f64 = logits[at].iter().map(|&logit| f64::from(logit).exp()).sum();
            losses.push(exps.ln() - f64::from(logits[at][window[at + 1] as usize]));
        }
    }
    ((losses.iter().sum::<f64>() / losses.len() as f64).exp(), losses.len())
}

#[test]
fn it_is_that_of_the_logits_with_and_without_bos() {
    for model in ["qwen2.gguf", "gemma3.gguf", "llama3_rope.gguf"] {
        for ctx in [16, 17] {
            let mut session = session(model, 32);
            let tokens = text_tokens(&session, 3 * ctx + 5);
            let options = PerplexityOptions { ctx, chunks: None };
            let mut windows = Vec::new();
            let result = perplexity(&mut session, &tokens, &options, &mut |so_far, total| {
                windows.push((so_far.chunks, total));
                ControlFlow::Continue(())
            })
            .unwrap();
            let (perplexity, scored) = expected(&mut session, &tokens, ctx);
            assert!(
                (result.perplexity / perplexity - 1.0).abs() < 1e-5,
                "{model}: {result:?}, expected {perplexity}"
            );
            assert_eq!((result.tokens, result.chunks), (scored, 3));
            assert_eq!(windows, [(1, 3), (2, 3), (3, 3)]);
        }
    }
}

#[test]
fn it_stops_after_the_windows_asked_for_and_when_told() {
    let mut session = session("qwen2.gguf", 16);
    let tokens = text_tokens(&session, 100);
    let mut run = |chunks, stop: bool| {
        let options = PerplexityOptions { ctx: 16, chunks };
        let flow = || if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        perplexity(&mut session, &tokens, &options, &mut |_, _| flow()).unwrap().chunks
    };
    assert_eq!(run(Some(2), false), 2);
    assert_eq!(run(Some(99), false), 6);
    assert_eq!(run(None, true), 1);
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let mut session = session("qwen2.gguf", 16);
    let tokens = text_tokens(&session, 31);
    let mut run = |ctx| {
        let options = PerplexityOptions { ctx, chunks: None };
        perplexity(&mut session, &tokens, &options, &mut |_, _| ControlFlow::Continue(()))
    };
    assert!(matches!(run(16), Err(PerplexityError::TooShort { tokens: 31, needed: 32 })));
    assert!(matches!(run(17), Err(PerplexityError::Window { ctx: 17, limit: 16 })));
    assert!(matches!(run(3), Err(PerplexityError::Window { .. })));
    assert!(run(4).is_ok());
}
