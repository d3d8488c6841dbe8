//! Chat templates put together from pieces.

use marlin_models::{ChatOptions, ChatTemplate, Message};
use proptest::prelude::*;

use crate::config;
use crate::memory::{TOKENIZER, check_memory, measured};

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn chat_templates(pieces in prop::collection::vec(template_pieces(), 0..24)) {
        let source = pieces.concat();
        let (result, memory) = measured(|| ChatTemplate::new(&source));
        check_memory(memory, TOKENIZER, source.len())?;
        if let Ok(template) = result {
            let messages = [Message::new("user", "Hi!"), Message::new("assistant", "Hello.")];
            let rendered = template.render(&messages, "<s>", "</s>", &ChatOptions::default());
            if let Err(error) = rendered {
                prop_assert!(error.to_string().contains("chat template"), "{error}");
            }
        }
    }
}

fn template_pieces() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("{{"),
        Just("}}"),
        Just("{%"),
        Just("%}"),
        Just("{%-"),
        Just("-%}"),
        Just("{#"),
        Just("#}"),
        Just("{% for m in messages %}"),
        Just("{% endfor %}"),
        Just("{% if messages %}"),
        Just("{% else %}"),
        Just("{% endif %}"),
        Just("{% generation %}"),
        Just("{% endgeneration %}"),
        Just("{% set x = messages %}"),
        Just("{% macro f(a) %}"),
        Just("{% endmacro %}"),
        Just("{{ f(1) }}"),
        Just("{{ m.content | trim }}"),
        Just("{{ messages[-1]['role'] }}"),
        Just("{{ messages[::-1] | tojson(indent=99999999999) }}"),
        Just("{{ range(99999999) }}"),
        Just("{{ 'a' * 99999999999 }}"),
        Just("{{ raise_exception('no') }}"),
        Just("{{ strftime_now('%Q%%%') }}"),
        Just("{% break %}"),
        Just("{% include 'chat' %}"),
        Just("(((("),
        Just("[[[["),
        Just("{{ x.split('').strip('').replace('', 'a') }}"),
        Just("\\"),
        Just("'"),
        Just(" "),
        Just("é"),
        Just("0x"),
        Just("{{ messages | map(attribute='role') | join(', ') }}"),
        Just("{{ 1 // 0 }}"),
        Just("{{ -9223372036854775808 % -1 }}"),
    ]
    .prop_map(str::to_owned)
}
