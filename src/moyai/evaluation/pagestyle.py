"""The look of a report: one style sheet, light and dark, wide and narrow. No fonts and no scripts are fetched."""

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1f2328;--soft:#59636e;--line:#e3e5e8;--accent:#0a5fc4;
--warn-bg:#fff6e0;--warn-line:#d9a400;--warn-ink:#5c4400;--code:#f3f4f5;
--shadow:0 1px 2px #1f23280d,0 6px 20px #1f23280d}
@media(prefers-color-scheme:dark){:root{--bg:#0f1216;--card:#171b21;--ink:#e6e9ec;--soft:#a2abb5;--line:#2b313a;
--accent:#6cb6ff;--warn-bg:#2b2410;--warn-line:#b98a00;--warn-ink:#f2d891;--code:#12161b;--shadow:none}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:4.5rem;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;overflow-wrap:break-word}
header,main,footer,nav ul{max-width:1080px;margin:0 auto;padding:0 1.5rem}
header{padding-top:4rem;padding-bottom:1.75rem}
h1{font-size:clamp(1.9rem,5vw,2.9rem);line-height:1.12;letter-spacing:-.025em;margin:0 0 .6rem;font-weight:700;
text-wrap:balance}
.subtitle{font-size:1.13rem;color:var(--soft);margin:0;max-width:44rem}
nav{position:sticky;top:0;z-index:5;background:color-mix(in srgb,var(--bg) 88%,transparent);
backdrop-filter:saturate(1.6) blur(10px);border-bottom:1px solid var(--line)}
nav ul{display:flex;gap:1.6rem;list-style:none;overflow-x:auto;scrollbar-width:none}
nav a{display:block;padding:.75rem 0;color:var(--soft);text-decoration:none;font-size:.92rem;white-space:nowrap}
nav a:hover{color:var(--ink)}
a{color:var(--accent)}
:focus-visible{outline:2px solid var(--accent);outline-offset:3px;border-radius:3px}
section{padding:3rem 0 1rem}
section+section{border-top:1px solid var(--line);margin-top:1.5rem}
h2{font-size:1.55rem;line-height:1.25;letter-spacing:-.015em;margin:0 0 1.1rem}
h2:has(+.lead){margin-bottom:.35rem}
.lead,.text,figcaption{text-wrap:pretty}
.lead{color:var(--soft);margin:0 0 1.6rem;max-width:44rem;font-size:1.05rem}
.text{max-width:44rem;margin:0 0 1.25rem}
figure{margin:0 0 1.75rem;min-width:0}
figcaption,.note{color:var(--soft);font-size:.9rem;line-height:1.5;margin-top:.6rem;max-width:44rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;box-shadow:var(--shadow)}

.zoom{display:block;position:relative;max-width:100%;cursor:zoom-in}
.zoom input{position:absolute;opacity:0;width:100%;height:100%;inset:0;margin:0;cursor:inherit}
.zoom img{display:block;width:100%;height:auto;border-radius:8px;background:#8882}
.zoom .pixelated{image-rendering:pixelated}
.zoom:has(input:focus-visible) img{outline:2px solid var(--accent);outline-offset:3px}
.zoom input:checked{position:fixed;z-index:11;cursor:zoom-out}
.zoom input:checked+img{position:fixed;inset:0;z-index:10;width:100%;height:100%;object-fit:contain;border-radius:0;
padding:min(3vw,2rem);background:var(--bg)}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,var(--cell)),1fr));gap:1.5rem}
.gallery figure{margin:0}
.gallery .zoom{width:100%!important}

.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr));gap:1.25rem;
margin-bottom:1.75rem}
.chart{padding:1.25rem 1.25rem 1rem;margin:0;max-width:46rem}
.chart svg{display:block;width:100%;height:auto}

.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.95rem;font-variant-numeric:tabular-nums}
caption{caption-side:top;text-align:left;padding:1rem 1.1rem .35rem;font-weight:600}
th,td{padding:.6rem 1.1rem;text-align:left;border-top:1px solid var(--line);vertical-align:baseline}
thead th{color:var(--soft);font-weight:500;font-size:.87rem;border-top:0;vertical-align:bottom}
tbody th{font-weight:500;min-width:7.5rem}
th.number,td.number{text-align:right;white-space:nowrap;padding-left:.4rem;padding-right:.8rem}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,8.5rem),1fr));gap:1.1rem 1.25rem;
padding:1.2rem 1.3rem;margin:0 0 1.75rem}
dt{color:var(--soft);font-size:.85rem;line-height:1.35}
dd{margin:.1rem 0 0;font-weight:600;font-variant-numeric:tabular-nums}
pre{background:var(--code);border:1px solid var(--line);border-radius:10px;padding:.95rem 1.15rem;margin:0;
overflow-x:auto;font:.87rem/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;tab-size:4}
.warning{background:var(--warn-bg);color:var(--warn-ink);border-left:4px solid var(--warn-line);border-radius:8px;
padding:.8rem 1.1rem;margin:0 0 1.5rem;max-width:46rem}
footer{color:var(--soft);font-size:.87rem;padding-top:2.5rem;padding-bottom:3rem}
@media(max-width:640px){header{padding-top:2.25rem}header,main,footer,nav ul{padding-left:1.1rem;padding-right:1.1rem}
.zoom img:not(.tiny){image-rendering:auto}.chart{padding:.9rem .8rem .7rem}th,td{padding:.5rem .7rem}
section{padding-top:2.25rem}.gallery{gap:1.1rem}}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
@media print{nav{display:none}.card{box-shadow:none}section{break-inside:avoid-page}}
"""
