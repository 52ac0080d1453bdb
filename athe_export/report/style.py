"""The look of report.html: one column on a phone, nothing cut off in print, colours that differ in grey too."""

STYLE = """
:root{color-scheme:light;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--ground:#f6f8fa;--pass:#1a7f37;--fail:#b3261e;
--open:#8a5a00}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1rem;color:var(--ink);background:#fff}
h1{font-size:1.7rem;margin:.5rem 0;overflow-wrap:anywhere}h2{font-size:1.25rem;margin:2.2rem 0 .4rem}
h3{font-size:1.02rem;margin:1.4rem 0 .2rem}p{max-width:46rem}
.lead{color:var(--soft);margin:.2rem 0 .8rem}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;margin:.6rem 0;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{border-bottom:1px solid var(--line);padding:.3rem .6rem;text-align:right;vertical-align:middle}
th{color:var(--soft);font-weight:600;vertical-align:bottom}
.words1 :is(th,td):first-child,.words2 :is(th,td):nth-child(-n+2),
.words3 :is(th,td):nth-child(-n+3){text-align:left}
td svg{display:block}
.wide :is(th,td):first-child{position:sticky;left:0;background:#fff}
.wide :is(th,td):not(:first-child){white-space:nowrap}th{white-space:normal!important}
.pass{color:var(--pass)}.fail{color:var(--fail);font-weight:600}
.inconclusive,.not_gated{color:var(--open);font-weight:600}
.verdict{border-left:.3rem solid;padding:.4rem .8rem;background:var(--ground)}
code,pre{font:.85em/1.45 ui-monospace,monospace;background:var(--ground)}
code{padding:.1rem .3rem;white-space:normal;overflow-wrap:anywhere}
pre{padding:.8rem;overflow-x:auto}
figure{margin:0}.plot{overflow-x:auto}.plot svg{width:100%;min-width:26rem;max-width:44rem;height:auto}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(30rem,100%),1fr));gap:.6rem 1.4rem}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(9.5rem,30%),1fr));gap:.7rem;margin:.6rem 0}
.gallery figure{border:1px solid var(--line);border-radius:.3rem;padding:.5rem;font-size:.8rem;line-height:1.35}
.gallery img{width:100%;aspect-ratio:1;object-fit:contain;image-rendering:pixelated;background:var(--ground)}
.gallery figcaption{margin-top:.3rem;overflow-wrap:anywhere}.gallery b{display:block}
details{margin:.3rem 0}summary{cursor:pointer}details p{overflow-wrap:anywhere;font-size:.85rem}
tr.group td{text-align:left!important;font-weight:600;padding-top:.8rem}tr.group span{position:sticky;left:.6rem}
@media (max-width:40rem){td svg{width:7.5rem;height:auto}}
@media print{body{font-size:10pt;max-width:none;padding:0}h2,h3,.lead{break-after:avoid}
.lead,tr,figure,svg{break-inside:avoid}.wide{overflow:visible}.wide :is(th,td):first-child,tr.group span{position:static}
.plots{grid-template-columns:1fr 1fr}.plot svg{min-width:0}
table{font-size:7.5pt}th,td{padding:.15rem .3rem}.gallery{grid-template-columns:repeat(6,minmax(0,1fr))}
pre{white-space:pre-wrap}td svg{width:120px;height:auto}}
"""
