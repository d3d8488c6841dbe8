//! The start of a step: `step.metal`.

use marlin_kernels::step::{BeginStep, BeginStepArgs};
use marlin_kernels::{Grid, View, ViewMut};

use super::lengths::{expect_at_least, expect_len, refuse};
use crate::{CommandList, GpuError};

const THREADS: u32 = 256;

/// Tokens of a step as the host gives them.
#[derive(Clone, Copy)]
pub struct StepTokens<'a> {
    /// `[tokens]`; [`StepToken::SAMPLED`](marlin_backend::StepToken::SAMPLED) is what the last step chose for the
    /// token's slot.
    pub given: View<'a, u32>,
    /// `[tokens, 2]`: slot and position.
    pub places: View<'a, u32>,
    /// `[slots]`: the tokens that sampling chose last.
    pub sampled: View<'a, u32>,
}

/// Appends the search for the tokens' ids and their entry into their sequences' histories, which penalties read.
///
/// `ids`: `[tokens]`; `history`: `[slots, history_length]`. A history must be longer than
/// [`SamplingSettings::MAX_REPEAT_LAST_N`](marlin_backend::SamplingSettings::MAX_REPEAT_LAST_N) by the tokens of a
/// step (or hold the whole context).
///
/// # Errors
/// [`GpuError::Launch`] if a buffer has another size.
pub fn begin_step(
    list: &mut CommandList,
    tokens: StepTokens<'_>,
    ids: ViewMut<'_, u32>,
    history: ViewMut<'_, u32>,
    history_length: usize,
) -> Result<(), GpuError> {
    let kernel = "begin_step";
    let count = tokens.given.len();
    expect_len(kernel, "places", tokens.places.len(), 2 * count)?;
    expect_len(kernel, "ids", ids.len(), count)?;
    expect_at_least(kernel, "tokens of a history", history_length, 1)?;
    if history.len() != tokens.sampled.len() * history_length {
        return Err(refuse(
            kernel,
            format!(
                "a history of {}, expected {} slots of {history_length}",
                history.len(),
                tokens.sampled.len()
            ),
        ));
    }
    list.launch(
        BeginStep {
            given: tokens.given,
            places: tokens.places,
            sampled: tokens.sampled,
            ids,
            history,
            args: BeginStepArgs { tokens: count as u32, history_length: history_length as u32 },
        },
        Grid::x((count as u32).div_ceil(THREADS), THREADS),
    );
    Ok(())
}
