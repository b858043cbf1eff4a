//! The results of a benchmark as a report.

use super::{Bench, Bound, Decode, Limit, ReadMethod};
use crate::report::{Axis, Cell, Chart, Error, Report, Section, Series, Table};

const UNKNOWN: &str = "unknown";
const SPEED: &str = "tokens/s";

impl Bench {
    /// Returns the report: the machine, tables and charts of prefill and decoding, and the roofline.
    ///
    /// # Errors
    /// When the results cannot be written as JSON, which those of a benchmark always can; see [`Report::new`].
    pub fn report(&self) -> Result<Report, Error> {
        let mut report = Report::new(format!("densessm bench of {}", self.bundle.display()), self)?;
        report.fact("model", self.model.as_str());
        report.fact("runtime", format!("{} {} on {}", self.runtime, self.runtime_version, self.device));
        self.placement.iter().for_each(|placement| report.fact("operators", placement.to_string()));
        report.fact("threads", self.threads.to_string());
        report.fact("machine", self.machine.system.as_str());
        report.fact("processor", self.machine.cpu.as_deref().unwrap_or(UNKNOWN));
        report.fact("cores", self.machine.cores.to_string());
        report.fact("densessm", self.version);
        if let Some(date) = &self.date {
            report.fact("date", date.as_str());
        }
        let weights = format!("{} in {}", megabytes(self.token.weight_bytes), self.token.dtype);
        report.fact("weights read per token", weights);
        report.fact("load time", Cell::number(self.load_seconds, "s").to_string());
        let peak = self.peak_resident_bytes.map(|bytes| megabytes(bytes).to_string());
        report.fact("peak resident memory", peak.as_deref().unwrap_or(UNKNOWN));
        if !self.complete {
            report.fact("stopped", "before everything was measured");
        }
        report.sections.extend([self.prompts(), self.decoding()]);
        report.sections.extend((!self.positions.is_empty()).then(|| self.at_positions()));
        report.sections.extend(self.machine_section());
        Ok(report)
    }

    fn prompts(&self) -> Section {
        let mut table = Table::new([
            "prompt",
            "batch",
            "prefill",
            "roofline",
            "limit",
            "of roofline",
            "first token",
            "peak memory",
        ]);
        for run in &self.runs {
            let prefill = &run.prefill;
            let [roofline, limit, reached] = beside(prefill.bound);
            table.row([
                run.prompt_tokens.into(),
                run.batch.into(),
                Cell::number(prefill.tokens_per_second, SPEED),
                roofline,
                limit,
                reached,
                milliseconds(prefill.time_to_first_token_seconds),
                run.peak_resident_bytes.map_or(Cell::Absent, megabytes),
            ]);
        }
        let prompt =
            |run: &super::Run| (run.batch, run.prompt_tokens, run.prefill.tokens_per_second, run.prefill.bound);
        let batch = |run: &super::Run| (run.prompt_tokens, run.batch, run.prefill.tokens_per_second, run.prefill.bound);
        let paragraph = "Tokens per second, summed over the rows; the prompt is consumed in chunks as `generate` does. \
                         Each figure is the median of several runs after one to warm up. The time to the first token \
                         starts with initial states; the token is chosen greedily. Peak memory is resident memory.";
        let section = Section::new("Prefill").paragraph(paragraph).table(table);
        let charts = [
            self.chart("Prefill by prompt length", Axis::log("prompt length in tokens"), "batch", prompt),
            self.chart("Prefill by batch size", Axis::linear("batch size"), "prompt of", batch),
        ];
        charts.into_iter().flatten().fold(section, Section::chart)
    }

    fn decoding(&self) -> Section {
        let mut table =
            Table::new(["prompt", "batch", "decode", "roofline", "limit", "of roofline", "p50", "p90", "p99"]);
        for run in &self.runs {
            let start = [run.prompt_tokens.into(), run.batch.into()];
            table.row(start.into_iter().chain(speed(&run.decode)));
        }
        let batch = |run: &super::Run| (run.prompt_tokens, run.batch, run.decode.tokens_per_second, run.decode.bound);
        let paragraph = "Tokens per second, summed over the rows, and the 50th, 90th and 99th percentiles of the time of a \
                         step.";
        let section = Section::new("Decoding after the prompt").paragraph(paragraph).table(table);
        let charts =
            [self.over_context(), self.chart("Decoding by batch size", Axis::linear("batch size"), "prompt of", batch)];
        charts.into_iter().flatten().fold(section, Section::chart)
    }

    fn at_positions(&self) -> Section {
        let mut table =
            Table::new(["position", "batch", "decode", "roofline", "limit", "of roofline", "p50", "p90", "p99"]);
        for at in &self.positions {
            table.row([at.position.into(), at.batch.into()].into_iter().chain(speed(&at.decode)));
        }
        let paragraph = "The states have consumed one token and count as being at these positions: the cost of a step \
                         depends on the size of the states, which is constant. The positions alternate step by step.";
        Section::new("Decoding at long context").paragraph(paragraph).table(table)
    }

    fn machine_section(&self) -> Option<Section> {
        let roofline = self.roofline?;
        let [rows, inner, columns] = roofline.gemm;
        let mut table = Table::new(["peak rate", "measured", "method"]);
        let read = match roofline.read_method {
            ReadMethod::Sums => "sums over a large buffer",
            ReadMethod::Kernel => "a kernel that reads a large buffer",
            ReadMethod::Product => "product of one row with a large weight",
        };
        table.row(["memory reads".into(), giga(roofline.read_bytes_per_second, "GB/s"), read.into()]);
        let product = format!("{}, {} [{rows}, {inner}] × [{inner}, {columns}]", self.runtime, roofline.gemm_dtype);
        table.row(["matrix product".into(), giga(roofline.gemm_flops_per_second, "GFLOP/s"), product.into()]);
        let paragraph = "Measured on the same device with the same number of threads before and after everything else; \
                         the better value counts. A step reads every weight once and reads and writes the states of \
                         each row. Each call of prefill reads every weight, and each token needs the operations of its \
                         products and its recurrence, and of the output head only where logits are returned. The limit \
                         is whichever takes longer. A figure above 100 % means that weights stay in a cache between \
                         steps, or that other load slowed the machine down while its peak rates were measured.";
        let section = Section::new("The roofline").paragraph(paragraph).table(table);
        Some(section)
    }

    /// Returns a chart with a line for each value of one dimension over the other, and one for its roofline; none if no
    /// line has two points.
    fn chart(
        &self,
        title: &str,
        x: Axis,
        line: &str,
        point: impl Fn(&super::Run) -> (usize, usize, f64, Option<Bound>),
    ) -> Option<Chart> {
        let points: Vec<_> = self.runs.iter().map(point).collect();
        let mut lines: Vec<usize> = points.iter().map(|point| point.0).collect();
        lines.sort_unstable();
        lines.dedup();
        let mut series = Vec::new();
        for name in lines {
            let mut on: Vec<_> = points.iter().filter(|point| point.0 == name).collect();
            on.sort_unstable_by_key(|point| point.1);
            let measured = on.iter().map(|&&(_, x, y, _)| (x as f64, y)).collect();
            let allowed: Vec<_> =
                on.iter().filter_map(|&&(_, x, _, bound)| Some((x as f64, bound?.tokens_per_second))).collect();
            series.push(Series::measured(format!("{line} {name}"), measured));
            if !allowed.is_empty() {
                series.push(Series::bound(format!("{line} {name}, roofline"), allowed));
            }
        }
        let wide = series.iter().any(|series| series.points.len() > 1);
        wide.then(|| Chart { title: title.to_owned(), x, y: Axis::linear(SPEED), series })
    }

    /// Returns the chart of decoding over the tokens consumed: after each prompt, and at the positions.
    fn over_context(&self) -> Option<Chart> {
        let mut batches: Vec<usize> = self.runs.iter().map(|run| run.batch).collect();
        batches.sort_unstable();
        batches.dedup();
        let mut series = Vec::new();
        for batch in batches {
            let runs = self.runs.iter().filter(|run| run.batch == batch);
            let mut points: Vec<_> = runs.map(|run| (run.prompt_tokens, &run.decode)).collect();
            let at = self.positions.iter().filter(|at| at.batch == batch);
            points.extend(at.map(|at| (at.position, &at.decode)));
            points.sort_by_key(|point| point.0);
            let measured = points.iter().map(|(x, decode)| (*x as f64, decode.tokens_per_second)).collect();
            series.push(Series::measured(format!("batch {batch}"), measured));
            let allowed = points.iter().filter_map(|(x, decode)| Some((*x as f64, decode.bound?.tokens_per_second)));
            let allowed: Vec<_> = allowed.collect();
            if !allowed.is_empty() {
                series.push(Series::bound(format!("batch {batch}, roofline"), allowed));
            }
        }
        let x = Axis::log("tokens consumed");
        (!series.is_empty()).then(|| Chart {
            title: "Decoding by context length".to_owned(),
            x,
            y: Axis::linear(SPEED),
            series,
        })
    }
}

fn speed(decode: &Decode) -> [Cell; 7] {
    let [roofline, limit, reached] = beside(decode.bound);
    let step = decode.step_seconds;
    let [p50, p90, p99] = [step.p50, step.p90, step.p99].map(milliseconds);
    [Cell::number(decode.tokens_per_second, SPEED), roofline, limit, reached, p50, p90, p99]
}

fn beside(bound: Option<Bound>) -> [Cell; 3] {
    bound.map_or([Cell::Absent, Cell::Absent, Cell::Absent], |bound| {
        let limit = match bound.limit {
            Limit::ReadBandwidth => "memory",
            Limit::Gemm => "compute",
        };
        [Cell::number(bound.tokens_per_second, SPEED), limit.into(), Cell::percent(bound.fraction)]
    })
}

fn milliseconds(seconds: f64) -> Cell {
    Cell::number(1e3 * seconds, "ms")
}

fn megabytes(bytes: u64) -> Cell {
    Cell::number(bytes as f64 / 1e6, "MB")
}

fn giga(value: f64, unit: &'static str) -> Cell {
    Cell::number(value / 1e9, unit)
}
