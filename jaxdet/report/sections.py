"""The sections of the page: what is measured, what it says, and what to do about it."""

from collections.abc import Sequence
from html import escape

import numpy as np

from jaxdet.evaluation import curves
from jaxdet.evaluation.analysis import HISTOGRAM_BINS, Analysis
from jaxdet.report import charts, markup
from jaxdet.report.markup import fraction

MANY = 12  # More classes than that are folded, but for the worst.
SHOWN_LINES = charts.STYLES
PAIRS = 12  # Of confusions that are listed.
COLUMNS = ("AP", "AP50", "AP75", "small", "medium", "large")


def numbers(analysis: Analysis) -> str:
    """The headline."""
    totals, at = analysis.totals, analysis.at_score
    cards = [
        (fraction(totals["AP"]), "AP, the mean over IoU .5 to .95"),
        (fraction(totals["AP50"]), "AP50: a loose box is enough"),
        (fraction(totals["AP75"]), "AP75: the box must fit"),
        (
            fraction(at["precision"]),
            f"precision at score {analysis.score:.2f}: right ones of found",
        ),
        (fraction(at["recall"]), f"recall at score {analysis.score:.2f}: found ones of all"),
        (fraction(at["F1"]), "F1, of both: the best there is"),
    ]
    items = "".join(
        f'<div class="number"><b>{value}</b><span>{escape(text)}</span></div>'
        for value, text in cards
    )
    return markup.section(
        "numbers",
        "In short",
        f'<div class="numbers">{items}</div>',
        f"AP asks how well the detector finds and ranks objects, whatever score you cut at; "
        f"precision and recall say what you get if you do. For use, start with "
        f"<code>--score={analysis.score:.2f}</code>: there the mean F1 of the classes is highest. "
        f"{_weakness(analysis)}",
    )


def by_class(analysis: Analysis) -> str:
    """AP by class and size."""
    order = _worst_first(analysis)
    rows = [
        (
            analysis.class_names[k],
            [int(analysis.num_objects[k]), *analysis.by_class[k], analysis.scores[k]],
        )
        for k in order
    ]
    sizes = [analysis.totals[key] for key in ("APs", "APm", "APl")]
    sizes = [np.nan if value is None else value for value in sizes]
    means = [analysis.totals[key] for key in ("AP", "AP50", "AP75")]
    means = [np.nan if value is None else value for value in means]
    everything = ("all", [int(analysis.num_objects.sum()), *means, *sizes, analysis.score])
    head = ("class", "objects", *COLUMNS, "best score")
    caption = "The weakest class first. Best score: where its F1 is highest."
    shown = markup.class_table(head, [everything, *rows[:MANY]], caption)
    if len(rows) > MANY:
        rest = markup.class_table(head, rows[MANY:], caption)
        shown += markup.fold(f"the other {len(rows) - MANY} classes", rest)
    return markup.section(
        "classes",
        "Which classes and sizes are weak",
        shown,
        "Where AP50 is high and AP75 low, objects are found, but loosely boxed. "
        "Small is below 32 × 32 pixels of the original image, large above 96 × 96.",
        "A weak class with few objects wants more examples of it. If small objects are weak, give "
        "the detector larger images (<code>config.data.canvas</code>) before anything else.",
    )


def score_curves(analysis: Analysis) -> str:
    """Precision over recall, and F1 over the score."""
    chosen = [k for k in _worst_first(analysis) if analysis.num_objects[k]][:SHOWN_LINES]
    some = f"the {len(chosen)} weakest classes" if len(chosen) < _shown(analysis).sum() else ""
    figures = [
        _curve_figure(
            analysis,
            chosen,
            ("Precision over recall", "recall", "precision"),
            (curves.RECALLS, analysis.precisions),
            [f"AP50 {fraction(analysis.precisions[k].mean())}" for k in chosen],
            None,
            f"At IoU .5; {some or 'all classes'}, and the mean.",
        ),
        _curve_figure(
            analysis,
            chosen,
            ("F1 over the lowest score", "lowest score that counts", "F1"),
            (curves.SCORES, analysis.f1),
            [f"best at {analysis.scores[k]:.2f}" for k in chosen],
            analysis.score,
            f"The dotted line is at {analysis.score:.2f}, where the mean is highest.",
        ),
    ]
    return markup.section(
        "curves",
        "What a lowest score does",
        markup.charts(figures),
        "Lowering the score walks along a curve to the right: more is found, and more of it is "
        "wrong. A curve that ends early means that the rest is not found at any score; one that "
        "falls early, that false detections score as high as right ones.",
        f"Use <code>--score={analysis.score:.2f}</code> where both kinds of mistakes are as bad. "
        "Take a higher one where false alarms cost more, a lower one where misses do. Where the "
        "classes' best scores lie far apart, cut each class at its own.",
    )


def scores(analysis: Analysis) -> str:
    """Histogram and calibration."""
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    rows = [
        (f"{low:.2f} to {high:.2f}", [int(right), int(wrong)])
        for low, high, (right, wrong) in zip(
            edges[:-1], edges[1:], analysis.histogram.T, strict=True
        )
    ]
    picture = charts.histogram(
        "Detections by score",
        "Columns of right and wrong detections over their score.",
        analysis.histogram,
        labels=("score", "detections"),
        mark=analysis.score,
    )
    legend = (
        '<ul class="legend"><li><svg viewBox="0 0 30 10" aria-hidden="true"><rect class="right" '
        'width="30" height="10"/></svg>right</li><li><svg viewBox="0 0 30 10" aria-hidden="true">'
        '<rect class="wrong" width="30" height="10"/></svg>wrong</li></ul>'
    )
    table = markup.table(("score", "right", "wrong"), rows)
    figures = [
        markup.figure("Detections by score", picture + legend, "", table),
        _reliability_figure(analysis),
    ]
    return markup.section(
        "scores",
        "What a score is worth",
        markup.charts(figures),
        "Good scores part right from wrong: wrong ones pile up at the left, right ones at the "
        "right. They are honest if, of the detections with a score of .8, four in five are right: "
        "then the columns reach the diagonal. Columns below it: the detector is too sure.",
        f"The mean distance is {fraction(analysis.reliability.error)} (the expected "
        "calibration error). It does not change AP; but before you read a score as a probability, "
        "map it by this diagram. A detector that is too sure has often been trained too long on "
        "too little.",
    )


def confusion(analysis: Analysis) -> str:
    """Which class is taken for which."""
    names = [*analysis.class_names, "background"]
    matrix = analysis.confusion
    wrong = matrix * (1 - np.eye(len(matrix), dtype=int))
    pairs = [divmod(place, len(matrix)) for place in np.argsort(-wrong, axis=None, kind="stable")]
    pairs = [(i, j) for i, j in pairs[:PAIRS] if wrong[i, j]]
    rows = [(_mistake(names, i, j), [int(wrong[i, j]), _share(matrix, i, j)]) for i, j in pairs]
    listed = (
        markup.table(("mistake", "times", "of the class"), rows, "The most frequent mistakes.")
        if rows
        else "<p>There is no mistake.</p>"
    )
    chosen = np.arange(len(matrix))
    note = ""
    if len(analysis.class_names) > MANY:
        mistaken = (wrong.sum(axis=0) + wrong.sum(axis=1))[:-1]
        chosen = np.sort(np.argsort(-mistaken, kind="stable")[:MANY])
        chosen = np.append(chosen, len(matrix) - 1)
        note = f" The {MANY} classes with most mistakes."
    heat = markup.matrix(
        [names[k] for k in chosen],
        matrix[np.ix_(chosen, chosen)],
        f"Rows are the truth, columns what was found, at score {analysis.score:.2f}.{note}",
    )
    return markup.section(
        "confusion",
        "What is taken for what",
        markup.side_by_side(heat, listed),
        "The diagonal is right. The last column counts objects that were not found, the last row "
        "detections where there is none of them (or one that was found already).",
        "Two classes that are often taken for each other: look at their images for wrong labels "
        "first, then at whether one can tell them apart at this size. Much in the last row: look "
        "whether the data has objects without a box.",
    )


KINDS = {
    "classification": ("wrong class, right place", "check the labels of the classes that mix"),
    "localisation": ("right class, loose box (IoU .1 to .5)", "larger images, or better boxes"),
    "both": ("wrong class and loose box", "as for the two above"),
    "duplicate": ("a second box on a found object", "a lower threshold of the suppression"),
    "background": ("nothing there", "objects without a box in the data? else images without any"),
    "missed": ("an object that nothing covers", "look at its size and class; more such examples"),
}


WHOLE = (
    "AP50 that would be won if all false detections scored lowest, and if no object was missed. "
    "The first is about scores and classes, the second about what is never found."
)


def losses(analysis: Analysis) -> str:
    """Where AP is lost."""
    errors = analysis.errors
    notes = [f"{value:.3f}" for value in errors.losses.values()]
    kinds = charts.bars(
        "AP lost by kind of error",
        "A bar for each kind: the AP50 that would be won without it.",
        errors.losses,
        notes,
    )
    both = {"false detections": errors.false_positives, "missed objects": errors.false_negatives}
    whole = charts.bars(
        "AP lost to false detections and to missed objects",
        "A bar for each of both: the AP50 that would be won without it.",
        {name: max(value, 0.0) for name, value in both.items()},
        [f"{value:.3f}" for value in both.values()],
    )
    caption = "AP50 that would be won if this kind of error alone were put right."
    figures = [
        markup.figure("AP50 lost by kind of error", kinds, caption),
        markup.figure("AP50 lost to all that is false, all that is missed", whole, WHOLE),
    ]
    rows = [
        (kind, [errors.counts[kind], f"{errors.losses[kind]:.4f}", *KINDS[kind]])
        for kind in errors.losses
    ]
    table = markup.table(("kind", "errors", "AP50 lost", "what it is", "what may help"), rows)
    return markup.section(
        "errors",
        "Where AP is lost",
        markup.charts(figures) + table,
        "These are the six kinds of TIDE (Bolya et al., 2020), over all scores. They do not add "
        "up: one error may hide another.",
        "Work on the longest bar first. " + _longest(errors.losses),
    )


def worst(pictures: Sequence[tuple[str, str]], score: float) -> str:
    """Images with the most mistakes; pictures as data URLs, with captions."""
    figures = "".join(
        f'<figure><img src="{url}" alt="{escape(caption)}" loading="lazy">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for url, caption in pictures
    )
    body = f'<div class="worst">{figures}</div>' if figures else "<p>No image has a mistake.</p>"
    return markup.section(
        "worst",
        "The worst images",
        body,
        f"Truth left, detections of score {score:.2f} or more right; those with the most false and "
        "missed objects first.",
        "Look for what they share: size, light, crowding, a class. And look at the truth: wrong "
        "and missing boxes are the cheapest thing to repair.",
    )


def data(analysis: Analysis, unreadable: int, unusable: int) -> str:
    """Counts of images and objects."""
    order = np.argsort(-analysis.num_objects, kind="stable")
    total = max(int(analysis.num_objects.sum()), 1)
    rows = [
        (
            analysis.class_names[k],
            [
                int(analysis.num_objects[k]),
                fraction(analysis.num_objects[k] / total),
                int(analysis.num_ignored[k]),
                int(analysis.num_detections[k]),
            ],
        )
        for k in order
    ]
    facts = [
        ("images evaluated", analysis.num_images),
        ("images that could not be read", unreadable),
        ("objects to find", int(analysis.num_objects.sum())),
        *((f"of them {name}", count) for name, count in analysis.num_sizes.items()),
        ("crowd or difficult objects, ignored", int(analysis.num_ignored.sum())),
        ("boxes that are empty or outside their image", unusable),
    ]
    head = ("class", "objects", "share", "ignored", "detections")
    body = markup.side_by_side(
        markup.table(("of the data", "count"), [(name, [count]) for name, count in facts]),
        markup.table(head, rows[:MANY]),
    )
    if len(rows) > MANY:
        body += markup.fold(
            f"the other {len(rows) - MANY} classes", markup.table(head, rows[MANY:])
        )
    return markup.section(
        "data",
        "What was measured on",
        body,
        "Detections are of all scores. A metric of a class with a dozen objects moves by "
        "hundredths from one image to the next.",
        _advice_on_data(analysis, unreadable),
    )


def _weakness(analysis):
    losses = analysis.errors.losses
    kind = max(losses, key=losses.get)
    if losses[kind] < 0.0005:
        return "No kind of error costs anything here."
    return (
        f'Most AP is lost to <b>{kind}</b> errors (<a href="#errors">{KINDS[kind][0]}</a>): '
        f"{losses[kind]:.3f} of AP50."
    )


def _longest(losses):
    kind = max(losses, key=losses.get)
    if losses[kind] < 0.0005:
        return "Here there is none."
    return f"Here that is <b>{kind}</b>: {KINDS[kind][0]}; {KINDS[kind][1]}."


def _shown(analysis):
    return analysis.num_objects > 0


def _worst_first(analysis):
    """By AP; those without objects last."""
    return np.argsort(np.nan_to_num(analysis.by_class[:, 0], nan=2.0), kind="stable")


def _curve_figure(analysis, chosen, titles, points, notes, mark, caption):
    (title, *labels), (x, values) = titles, points
    shown = _shown(analysis)
    names = analysis.class_names
    faint = [
        charts.Line(names[k], x, values[k], "faint")
        for k in np.flatnonzero(shown)
        if k not in chosen
    ]
    lines = [charts.Line(names[k], x, values[k], f"k{i}") for i, k in enumerate(chosen)]
    notes = dict(zip([line.name for line in lines], notes, strict=True))
    if len(names) > 1 and shown.any():
        lines.append(charts.Line("mean", x, values[shown].mean(axis=0), "mean"))
    description = f"{labels[1]} over {labels[0]}, a curve for each class."
    picture = charts.lines(title, description, faint + lines, labels=tuple(labels), mark=mark)
    every = range(0, len(x), 10)
    rows = [(line.name, [f"{line.y[i]:.2f}" for i in every]) for line in lines]
    table = markup.table((labels[0], *(f"{x[i]:.1f}" for i in every)), rows)
    return markup.figure(title, picture + charts.legend(lines, notes), caption, table)


def _reliability_figure(analysis):
    counts, means, precisions, _ = analysis.reliability
    size = len(counts)
    names = [f"{i / size:.1f} to {(i + 1) / size:.1f}" for i in range(size)]
    notes = [
        f"score {name}: {fraction(precision)} of {count:,} right"
        for name, precision, count in zip(names, precisions, counts, strict=True)
    ]
    picture = charts.columns(
        "Right ones by score",
        "The share of right detections by score; on the diagonal scores say the truth.",
        precisions,
        notes,
        ("score", "share that is right"),
    )
    rows = [
        (name, [int(count), fraction(mean), fraction(precision)])
        for name, count, mean, precision in zip(names, counts, means, precisions, strict=True)
    ]
    table = markup.table(("score", "detections", "mean score", "right"), rows)
    return markup.figure(
        "Calibration", picture, "Dotted: where score and share are the same.", table
    )


def _mistake(names, i, j):
    if j == len(names) - 1:
        return f"{names[i]} missed"
    if i == len(names) - 1:
        return f"{names[j]} where there is none"
    return f"{names[i]} taken for {names[j]}"


def _share(matrix, i, j):
    """Of all of the class: of its objects, or, where nothing is there, of its detections."""
    whole = matrix[:, j].sum() if i == len(matrix) - 1 else matrix[i].sum()
    return fraction(matrix[i, j] / whole)


def _advice_on_data(analysis, unreadable):
    parts = []
    if unreadable:
        parts.append(f"{unreadable} images could not be read: mend or remove their files.")
    missing = [n for n, c in zip(analysis.class_names, analysis.num_objects, strict=True) if not c]
    if missing:
        named = ", ".join(missing[:MANY]) + (", ..." if len(missing) > MANY else "")
        parts.append(escape(f"No object to find of: {named}. Nothing is known of them."))
    rare = [
        name
        for name, count in zip(analysis.class_names, analysis.num_objects, strict=True)
        if 0 < count < 30
    ]
    if rare:
        named = ", ".join(rare[:MANY]) + (", ..." if len(rare) > MANY else "")
        parts.append(escape(f"Fewer than 30 objects of: {named}. Read their numbers with care."))
    return " ".join(parts) or "All images could be read, and each class has 30 objects or more."
