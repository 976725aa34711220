"""Pictures of benchmark rows."""

from pathlib import Path


def speedups(rows: list[dict], path: Path) -> None:
    """Times faster than F.linear by the rows of x: a panel for each shape, dtype and cache, a color for each bit-width.

    Dotted: the machine's limit, ``limit_us`` of the rows. Dashed: the fastest peer. Of rows with the same setting, the
    middle one.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = sorted({(r["N"], r["K"], r["dtype"], r["cache"]) for r in rows})
    columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.2 * columns, 3.4 * lines), squeeze=False, layout="constrained"
    )
    colors = {bits: f"C{i}" for i, bits in enumerate(sorted({r["bits"] for r in rows}))}
    counts = sorted({r["M"] for r in rows})
    for ax, panel in zip(axes.flat, panels, strict=False):
        N, K, dtype, cache = panel
        here = [r for r in rows if (r["N"], r["K"], r["dtype"], r["cache"]) == panel]
        for bits, color in colors.items():
            same = {M: [r for r in here if (r["bits"], r["M"]) == (bits, M)] for M in counts}
            mine = [sorted(r, key=lambda r: r["x_dense"])[len(r) // 2] for r in same.values() if r]
            if not mine:
                continue
            M = [r["M"] for r in mine]
            ax.plot(M, [r["x_dense"] for r in mine], "o-", color=color, label=f"{bits} bit")
            ax.plot(M, [r["dense_us"] / r["limit_us"] for r in mine], ":", color=color, lw=1)
            ends = [(r["M"], r["dense_us"] / r["peer_us"]) for r in mine if r.get("peer_us")]
            if ends:
                ax.plot(*zip(*ends, strict=True), "x--", color=color, lw=1, label=f"fastest peer, {bits} bit")
        ax.axhline(1.0, color="0.7", lw=0.8, zorder=0)
        ax.set(xscale="log", yscale="log", xlabel="M, rows of x", ylabel="times faster than F.linear")
        ax.set_title(f"{N} x {K}, {dtype}, {cache}", fontsize=9)
        ax.set_xticks(counts, [str(m) for m in counts], minor=False)
        ax.set_xticks([], minor=True)
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
        ax.yaxis.set_minor_formatter(lambda v, _: f"{v:g}" if f"{v:.0e}"[0] in "25" else "")
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_axis_off()
    labels = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    axes.flat[0].legend(labels.values(), labels.keys(), fontsize=7)
    about = rows[0]
    bound = " (int8: of its memory alone)" if any(dtype == "int8" for _, _, dtype, _ in panels) else ""
    figure.suptitle(f"{about['hardware']}, {about['threads']} threads\ndotted: the machine's limit{bound}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
