"""How German documents are put together: openings, transitions, endings and whole sentence frames.

``S`` stands for a sentence about someone, ``{P}`` and ``{O}`` for people; see grammar_de.py for the slots.
"""

from engine import block, sections

TIMES = block("""
am <nächsten|frühen|anderen|selben> Morgen
am <späten|frühen> <Nachmittag|Vormittag|Abend>
kurz vor <Mittag|acht Uhr|Sonnenaufgang|Mitternacht|dem Abendessen>
nach <dem Frühstück|dem Mittagessen|einer langen Pause|der Arbeit|einer Weile|{zahl 2-9} Tagen>
gegen {zahl 2-12} Uhr
an diesem <Tag|Abend|Morgen>
am <Montag|Dienstag|Mittwoch|Donnerstag|Freitag|Samstag|Sonntag>
im <Frühling|Sommer|Herbst|Winter>
im {monat}
eine Stunde später
vor <zwei|drei|vier|fünf> Wochen
jeden <Morgen|Abend|Samstag|Sonntag>
""")

LINKS = block("""
dann
danach
zuerst
schließlich
trotzdem
deshalb
zum Glück
leider
<plötzlich|auf einmal>
wie immer
diesmal
später
<inzwischen|unterdessen>
am Ende
vorsichtig
mit <großer Mühe|viel Geduld|einem Seufzer|zitternden Händen|einem Lächeln>
zur <Sicherheit|Freude aller|Überraschung {der mensch g}>
ohne <ein Wort|Eile|lange zu überlegen>
""")

MANNER = block("""
noch einmal
<sehr sorgfältig|ganz langsam|in aller Ruhe>
gemeinsam mit {der mensch d}
wie <jedes Jahr|gewohnt|versprochen>
heimlich
<zwei|drei> Stunden lang
trotz {der wetter g}
vor den Augen {der mensch g}
ohne fremde Hilfe
""")

# Things people do with each other; {O} is the other one.
SOCIAL = block("""
helfen: {O} mit {ein gefäß d +}
erzählen: {O} von {ein tier d +}
fragen: {O} nach {ein ding d}
zeigen: {O} {ein ding a +}
schenken: {O} {ein ding a +}
zu|hören: {O} <aufmerksam|geduldig|kaum>
besuchen: {O} in {der gebäude d}
an|rufen: {O} noch am selben Abend
warnen: {O} vor {der wetter d}
um|stimmen: {O} mit {ein speise d +}
begleiten: {O} bis zu {der gebäude d}
ein|laden: {O} zu {ein fest d}
schreiben: {O} {ein schrift a +}
bitten: {O} um {ein ding a}
danken: {O} für {der schrift a}
leihen: {O} {ein kleidung a +}
überraschen: {O} mit {ein ding d +}
sich unterhalten: mit {O} über {der wetter a}
sich treffen: mit {O} vor {der gebäude d}
""")

ALONE = block("""
nach|denken: lange über {der schrift a} 
auf|wachen: vom Lärm {der fahrzeug g}
trinken: <eine Tasse Tee|ein Glas Milch|einen Becher Kakao|einen starken Kaffee>
schauen: aus dem Fenster auf {der landschaft a}
sich freuen: auf {der fest a}
sich setzen: auf {ein möbel a +}
sich ärgern: über {der mensch a}
sich erinnern: an {ein ding a} aus {ort}
an|ziehen: {ein kleidung a +}
vergessen: {ein ding a} in {der gebäude d}
gehen: durch {der landschaft a} nach Hause
laufen: zu {der gebäude d}
öffnen: {ein gefäß a} aus {ort}
sich wundern: über {der mensch a}
bezahlen: {zahl 2-60} Euro für {ein ding a}
ein|schlafen: auf {ein möbel d}
finden: {ein ding a rel} in {ein gefäß d}
sehen: {ein tier a rel} vor {der gebäude d}
betreten: {ein gebäude a rel}
suchen: einen Namen für {der tier a}
""")

DECIDED = ["beschloss", "versuchte", "hoffte", "begann", "vergaß", "versprach", "plante"]
MODALS = ["wollte", "musste", "konnte", "sollte", "durfte"]
NOTICED = ["merkte", "sah", "hörte", "bemerkte", "wusste", "glaubte", "fürchtete", "ahnte", "meinte", "erfuhr"]

OPENINGS = block("""
{P} war {R} in {hier} und besaß {ein tier a +}.
In {hier}, nicht weit von {ein gewässer d +}, lebte damals {P}.
Seit {zahl 3-40} Jahren arbeitete {P} als {R} in {hier}.
Jeder in {hier} kannte {P}.
Es war im {monat}, und in {hier} roch es nach <Schnee|Regen|Rauch|Heu|nassem Laub>.
{P} wohnte über {ein gebäude d +} in {hier}, gleich neben {ein gewässer d}.
Niemand in {hier} wusste genau, wie alt {P} war.
Als {P} nach {hier} zog, besaß {er P n} nur {ein gefäß a}, {ein kleidung a} und {ein ding a +}.
An einem <kalten|warmen|nebligen|windigen|klaren> Tag im {monat} kam {P} nach {hier}.
In der Familie von {P} gab es seit langem {ein ding a rel}.
{P} hatte {zahl 2-6} Geschwister, aber nur {er P n} war in {hier} geblieben.
Eigentlich wollte {P} nie {R} werden.
Über {hier} lag <dichter Nebel|ein heller Himmel|der erste Schnee|die Hitze des Sommers>, als {P} aus dem Haus trat.
Vor vielen Jahren stand in {hier} {ein gebäude n rel}.
""")

INTRODUCE_OTHER = block("""
{Q} kam oft zu Besuch und brachte {ein ding a} mit.
Nebenan wohnte {Q}, und die beiden kannten sich seit der Schule.
{Q} half manchmal, vor allem im {monat}.
An diesem Tag war auch {Q} dabei.
Zum ersten Mal begegnete {er P n} damals {Q}.
{Q} war ganz anders: <still und vorsichtig|laut und fröhlich|klug, aber ungeduldig|langsam, aber gründlich>.
Mit {Q} hatte {P} seit {zahl 2-9} Jahren kein Wort gesprochen.
""")

FEELINGS = block("""
{P} war <müde|glücklich|stolz|enttäuscht|erleichtert|neugierig|wütend|unsicher|zufrieden>, <aber|und> {er P n} sagte <nichts|kein Wort|es niemandem>.
So etwas hatte {P} noch nie gesehen: {ein ding n +} mitten auf {der anhöhe d}.
Das gefiel {er P d} besser als {ein fest n +}.
{P} dachte an {ein gebäude a +} in {ort} und an {ein mensch a}.
War das nun Glück oder Zufall?
Vielleicht lag es an {der wetter d}, vielleicht auch an {der schrift d}.
{er P n} lachte, denn {der ding n -} war {adj ding}.
Es dauerte {zahl 2-12} Tage, bis {P} das verstand.
Mehr als {zahl 2-20} Leute hatten zugesehen.
{der mensch n +} schüttelte den Kopf und ging weiter.
Niemand antwortete, nur {der tier n} hob den Kopf.
Das war <leichter|schwerer|lustiger|gefährlicher> als gedacht.
{P} zählte bis {zahl 5-90} und wartete.
Draußen fuhr {ein fahrzeug n +} vorbei.
Je länger {P} darüber nachdachte, desto weniger verstand {er P n} {der schrift a}.
Weder {P} noch {der mensch n} wusste, woher {der ding n} kam.
""")

ENDINGS = block("""
Seitdem steht {ein ding n +} auf {der möbel d}, und jeder darf es sich ansehen.
Noch heute erzählt man in {hier} davon, meistens <im Winter|nach dem Essen|an langen Abenden>.
Am Abend saßen alle um {ein möbel a} und aßen {ein speise a +}.
Und {P}? {er P n} kaufte sich {ein ding a +} und war zufrieden.
So ging der Tag zu Ende, und über {der gebäude d} stand der Mond.
{P} hängte {der kleidung a} an den Haken und löschte das Licht.
Im nächsten {monat} sollte alles anders werden, aber das ist eine andere Geschichte.
Von da an kam {der mensch n} jeden <Montag|Freitag|Sonntag> vorbei.
Als es dunkel wurde, schloss {P} die Tür, und nur {ein tier n} war noch zu hören.
„Morgen“, sagte {P} leise, „morgen nehmen wir {ein werkzeug a +}.“
Es blieb {ein ding n}, mehr nicht, doch {P} war damit zufrieden.
""")

WEATHER = block("""
<Es regnete|Es schneite|Es stürmte|Die Sonne schien> <seit dem Morgen|seit {zahl 2-9} Tagen|ohne Pause>, und {der gewässer n -} war {adj gewässer}.
Der Himmel war <grau|klar|voller Wolken|blau wie Glas>, und der Wind trieb <Blätter|Staub|Schnee|Wolken> über {der landschaft a}.
Das Thermometer zeigte <minus |>{zahl 2-29} Grad.
{der wetter n +} kam schneller, als {der mensch n} gedacht hatte.
In der Nacht hatte es gefroren, und {der fahrzeug n} sprang nicht an.
Über {der anhöhe d} zog ein Gewitter auf.
Trotz {der wetter g} war {der gebäude n} voller Leute.
Nach {der wetter d} stand das Wasser {zahl 5-60} Zentimeter hoch in {der raum d}.
Gegen {zahl 2-11} Uhr riss der Himmel auf, und {der gebäude n} glänzte in der Sonne.
Erst zog {der wetter n} auf, dann wurde es so still, dass man {ein tier a} hörte.
Die Luft war <mild|klar|schwer|eisig|feucht>, und über {der gewässer d} kreisten die Schwalben.
Ein Regenbogen spannte sich von {der gebäude d} bis zu {der anhöhe d}.
Auf {der anhöhe d} lag <Schnee|Reif|Tau|Dunst>, in {der landschaft d} blühte schon {ein pflanze n}.
Wo gestern noch {ein gewässer n +} war, sah man nur noch <Schlamm|Eis|Nebel>.
Der Wind riss {der mensch d} {der kleidung a} aus der Hand.
Am Fenster <sammelten sich Tropfen|wuchsen Eisblumen|tanzten Schneeflocken>, und {der maschine n} brummte leise.
Es war <so heiß|so kalt|so windig>, dass sogar {der tier n} im Haus blieb.
Kaum war {der wetter n} vorüber, öffnete {der mensch n} die Fenster.
Der Mond stand über {der landschaft d}, und {ein wildtier n} rief.
""")

LETTER = sections("""
[anfang]
vielen Dank für Deinen Brief vom {#1-28}. {monat}, der mich erst <gestern|heute|am Montag> erreicht hat.
endlich finde ich Zeit, Dir aus {hier} zu schreiben.
seit {zahl 2-8} Wochen wohne ich nun in {hier}, in {ein raum d +} mit Blick auf {ein gebäude a}.
hier in {hier} ist alles wie immer, nur {der gebäude n} hat jetzt ein neues Dach.
wie geht es Dir und {der tier d}?
Du wirst staunen, was mir in {hier} passiert ist.
leider kann ich am {#1-28}. {monat} nicht zu {der fest d} kommen.
heute regnet es, und darum bekommst Du einen besonders langen Brief.
[mitte]
Stell Dir vor, neulich stand {ein tier n +} mitten in {der gebäude d}!
Weißt Du noch, wie wir damals {ein ding a} in {der gewässer a} geworfen haben?
Das Essen ist gut, gestern gab es {ein speise a} mit {0 zutat d pl}.
Ich lerne jeden Tag etwas Neues, zum Beispiel über {der maschine a pl}.
Nur {der wetter n} macht mir Sorgen.
Am liebsten sitze ich unter {ein pflanze d +} und lese {ein schrift a}.
Die Leute hier sind <freundlich|schweigsam|neugierig|sehr höflich>, besonders {der mensch n}.
Ich habe Dir {ein ding a +} gekauft, aber ich verrate noch nicht, welche Farbe das Band hat.
{name} lässt Dich grüßen und fragt, ob Du {der ding a} noch hast.
Kannst Du mir bitte {der kleidung a} und {ein schrift a} schicken?
Die Fahrt hat {zahl 3-14} Stunden gedauert, und {der fahrzeug n -} war {adj fahrzeug}.
Was macht eigentlich {der mensch n} aus {ort}?
Wenn alles gut geht, komme ich im {monat} für {zahl 2-9} Tage nach Hause.
Mir fehlen {der tier n} und unser Spaziergang zu {der gewässer d}.
Letzte Nacht habe ich von {ein wildtier d +} geträumt.
[ende]
Schreib mir bald, wie es {der mensch d} geht.
Grüße bitte {mein verwandt a} von mir und vergiss {der tier a} nicht.
Jetzt muss ich schließen, denn {der fahrzeug n} wartet nicht.
Ich freue mich schon auf {der fest a}.
Bis bald in {ort}!
Bleib gesund und pass auf {der tier a} auf.
[gruß]
Herzliche Grüße
Viele liebe Grüße
Alles Gute
Mit besten Grüßen
Es umarmt Dich
In Gedanken bei Euch
""")

PLACE = block("""
{hier} liegt <am Fuß|am Rand|nördlich|südlich> {ein anhöhe g +} und hat {#150-990} Einwohner.
Mitten in {hier} steht {ein gebäude n +}, das erste Gebäude, das Besucher sehen.
Im {monat} blühen hier {0 pflanze n pl} und {0 pflanze n pl}.
Wer aus {hier} kommt, erkennt {der gebäude a} schon von weitem.
An {der gewässer d} leben {0 wildtier n pl} und seltene Vögel.
Im Jahr {#1412-1895} brannte {der gebäude n} ab und wurde {zahl 2-9} Jahre später neu gebaut.
Früher lebten die Leute von <Holz|Salz|Wolle|Glas|Fisch|Tuch>, heute eher von den Gästen.
Jeden <Mittwoch|Samstag|Sonntag> findet vor {der gebäude d} ein Markt statt.
Dort kann man {0 zutat a pl}, {0 vorrat a} und {0 werkzeug a pl} kaufen.
Zwischen {der gebäude d} und {der gebäude d} führt ein schmaler Weg zu {der gewässer d}.
{der fahrzeug n} nach {ort} fährt {zahl 2-9}mal am Tag.
Im Winter ist {der landschaft n} oft wochenlang verschneit.
Auf {der anhöhe d} weht immer ein wenig Wind.
Die Küche ist einfach: {ein speise n}, dazu {0 zutat n pl} und ein Glas Most.
In {der gebäude d} zeigt man {ein instrument a rel}.
Am schönsten ist es, wenn {der wetter n} vorbei ist und {0 tier n pl} auf der Weide stehen.
Eine alte Sage erzählt von {ein wildtier d +} mit einer silbernen Stimme.
Der höchste Punkt ist {ein anhöhe n} mit {#210-980} Metern.
Ein Spaziergang um {der gewässer a} dauert {zahl 2-6} Stunden.
Für Kinder gibt es {ein gewässer a}, {ein tier a +} zum Streicheln und {ein fahrzeug a +}.
Das Wappen zeigt {ein wildtier a} über {ein werkzeug d}.
In der Bibliothek stehen {#300-990} Bücher, darunter {ein schrift n +} aus dem Jahr {#1502-1790}.
""")

CREATURE = block("""
{ein T n} schläft {zahl 3-15} Stunden am Tag, am liebsten in {ein gefäß d}.
{der T n pl} fressen <Gras|Samen|Blätter|Käfer|Würmer> und manchmal {0 zutat a pl}.
Mit {ein werkzeug d} darf man sich {ein T d} nicht nähern.
{ein T n +} erkennt Menschen an der Stimme.
Im {monat} bekommen {der T n pl} ihre Jungen, meist {zahl 2-7} auf einmal.
Ein ausgewachsenes Tier wiegt etwa {zahl 2-90} Kilo.
Nachts hört man {der T a} bis zu {der gebäude d}.
Früher glaubte man, dass {ein T n} {der wetter a} vorhersagen kann.
Besonders scheu sind {der T n pl -}, wenn {ein mensch n} {ein kleidung a +} trägt.
Wer {ein T a +} findet, sollte zuerst {ein gefäß a} mit Wasser hinstellen.
Gegen {der wetter a} schützt {der T a} vor allem Wärme.
Im Vergleich zu {ein wildtier d} ist {ein T n} eher <langsam|flink|laut|geduldig>.
{zahl 2-40} Jahre alt wurde {ein T n} in {ort}, das ist selten.
Auf alten Bildern sieht man {der T a} oft neben {ein pflanze d}.
""")

NOTICE = block("""
Am {#1-28}. {monat} findet um {#8-20} Uhr in {der gebäude d} {ein fest n +} statt.
Der Eintritt kostet {#2-18} Euro, Kinder unter {zahl 6-14} Jahren zahlen nichts.
Gesucht wird {ein tier n}: {adj tier}, hört auf den Namen {name} und wurde zuletzt an {der gewässer d} gesehen.
Wegen {der wetter g} bleibt {der gebäude n} bis {monat} geschlossen.
Zu verkaufen: {ein möbel n +}, {#10-200} Zentimeter breit, dazu {num ding n}.
Gefunden wurde {ein ding n +} in {der fahrzeug d} nach {ort}.
{name} {familie} sucht {ein werkzeug a} und bietet dafür {ein instrument a}.
Wer {der schrift a} über {der gebäude a} gelesen hat, möge sich im Rathaus melden.
Bitte bringen Sie {ein gefäß a}, {ein kleidung a} und gute Laune mit.
Die Gewinner heißen {name}, {name} und {name}; der Preis ist {ein ding n +}.
Der Chor singt {ein stück a}, danach gibt es {ein speise a}.
Neu im Laden: {0 zutat n pl} aus {ort}, das Kilo für {#2-9} Euro.
{der fahrzeug n} fährt ab {monat} schon um {#5-9}.{#10-55} Uhr.
Die Schule bedankt sich bei {der mensch d} für {num schulding a +}.
Bei {der fest d} wurden {#120-980} Euro für {der gebäude a} gesammelt.
Am Sonntag führt {name} {familie} durch {der landschaft a}; Treffpunkt ist {der gebäude n}.
Achtung: In {der landschaft d} wurde {ein wildtier n} gesehen.
Tausche {ein instrument a} gegen {ein fahrzeug a} oder {num tier a}.
""")

LOG = block("""
Wind aus <Nord|Ost|Süd|West|Nordost|Südwest>, Stärke {zahl 2-9}, See <ruhig|bewegt|grob|kabbelig>.
{ein boot n +} an Backbord gesichtet.
{der schiffszeug n} gerissen, mit {ein werkzeug d} notdürftig geflickt.
Kurs auf {ort}, noch {zahl 5-80} Seemeilen.
Position unklar, {der wetter n} nimmt zu.
Vor {ort} geankert, {zahl 3-18} Meter Tiefe.
Ladung: {num gefäß n} mit {0 zutat d pl}, {num möbel n}.
Mannschaft wohlauf, nur der Koch klagt über {der geschirr a}.
{zahl 2-40} Delfine begleiteten das Schiff bis {ort}.
Ein Matrose fand {ein tier a} in {ein gefäß d}.
Barometer fällt, Segel gekürzt.
{name} am Ruder, gute Sicht, {zahl 3-25} Grad.
Bei {ort} Lotsen an Bord genommen.
""")

NEEDS = {
    "küche": ("geschirr", "zutat"), "werkstatt": ("werkzeug", "gefäß"), "maschinen": ("werkzeug", "teil"), "meer": ("schiffszeug", "werkzeug"),
    "schule": ("schulding", "schrift"), "garten": ("werkzeug", "pflanze"), "wald": ("kleidung", "ding"), "hof": ("gefäß", "werkzeug"),
    "dorf": ("schrift", "ding"), "reise": ("kleidung", "schrift"), "musik": ("instrument", "schrift"), "haus": ("werkzeug", "gefäß"),
}  # fmt: skip

HOWTO = sections("""
[anfang]
Man braucht dafür {num A a}, {ein B a +} und etwa {zahl 2-9} Stunden Zeit.
Bereit liegen sollten {ein A n +}, {num B n} und {ein ding n}.
Das ist nicht schwer, wenn man {ein A a +} und {ein B a} hat.
Diese Anleitung stammt von {mein verwandt d} aus {ort}.
Anfänger nehmen am besten {ein A a +}; wer Erfahrung hat, kommt mit {ein B d} aus.
[tipp]
{ein A n +} ist dafür nicht geeignet.
Zur Not tut es auch {ein B n +}.
Das dauert ungefähr {zahl 5-55} Minuten, bei {der wetter d} etwas länger.
Wenn {der A n -} zu {adj A} ist, hilft {ein B n}.
Warten Sie {zahl 2-30} Minuten, bevor Sie weitermachen.
Lassen Sie Kinder dabei nicht mit {der A d} allein.
Rechnen Sie mit Kosten von {#5-95} Euro.
Zu zweit geht es leichter: Einer hält {der A a}, der andere {der B a}.
[ende]
Wer will, kann am Schluss {ein ding a +} dazulegen.
Mit etwas Übung schafft man das in {zahl 10-50} Minuten.
Bewahren Sie alles in {ein gefäß d +} auf, dann hält es bis {monat}.
Viel Erfolg, und denken Sie an {der B a}!
""")
