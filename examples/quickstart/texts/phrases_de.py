"""What happens in the German corpus, by domain. The notation of the slots is explained in grammar_de.py.

Sections of a domain: ``tun`` verb phrases, ``lage`` facts as subject | rest | verb, ``bild`` scene sentences in the past,
``rede`` things people say, ``ort`` where it happens, ``titel`` headings, ``arbeit`` what a how-to explains.
"""

KÜCHE = """
[tun]
backen: {ein speise a +} für {der mensch a pl}
schneiden: {num zutat a} in <Scheiben|Würfel|dünne Streifen|kleine Stücke>
rühren: {der vorrat a} in {ein geschirr a}
kochen: {ein speise a} aus {0 zutat d pl} und {0 zutat d pl}
würzen: {der speise a} mit <Pfeffer|Kümmel|Majoran|etwas Muskat|frischem Dill>
probieren: {der speise a +}
stellen: {ein geschirr a} auf den Herd
schälen: {num zutat a}
ab|wiegen: {#100-900} Gramm {0 vorrat a}
ab|waschen: {der geschirr a pl}
decken: den Tisch für {zahl 3-24} Gäste
suchen: <in der Speisekammer|im Schrank|überall> nach {der vorrat d}
füllen: {der gefäß a} mit {0 zutat d pl +}
um|rühren: {der speise a} mit einem Holzlöffel
holen: {ein gefäß a} mit {0 zutat d pl} aus dem Keller
an|zünden: <das Feuer im Herd|die Lampe über dem Tisch|eine Kerze>
auf|schreiben: das Rezept für {der speise a} in {ein schrift a}
servieren: {der mensch d} {ein speise a +}
[lage]
{der speise n -}|{adj speise}|war
{der vorrat n}|fast aufgebraucht|war
{der zutat n pl}|noch nicht reif|waren
{der geschirr n}|auf dem falschen Brett|stand
in {ein gefäß d}|noch {num zutat n}|lagen
der Teig|einfach nicht aufgehen|wollte
das Feuer|zu schwach|brannte
[bild]
<Es duftete|In der ganzen Küche roch es|Bis auf die Straße roch es> nach <Zimt und Zucker|frischem Brot|gebratenen Zwiebeln|Apfelmus|Honigkuchen>.
Auf dem Herd brodelte {ein speise n}, und daneben stand {ein geschirr n +}.
An der Wand hingen {num geschirr n} und {ein ding n +}.
Der Teig ruhte unter {ein ding d} und wurde langsam größer.
Durch das Küchenfenster sah man {ein gebäude a +} und {ein pflanze a +}.
Auf dem Tisch lagen {num zutat n +} neben {ein geschirr d}.
Das Brett war noch <feucht|voller Krümel|weiß vom Mehl>, und in der Ecke summte {ein maschine n}.
[rede]
Wo hast du {der vorrat a} hingestellt?
Zu {ein speise d} gehören unbedingt {0 zutat n pl}.
Ohne {0 vorrat a} wird {der speise n} nichts.
Nimm lieber {der geschirr a +}, sonst läuft alles über.
Meine Großmutter hat immer noch einen Löffel {0 vorrat a} dazugegeben.
Bitte probier {der speise a}, aber Vorsicht, es ist noch heiß!
Es reicht für {zahl 3-20} Leute, wenn niemand zweimal nimmt.
[ort]
in der Küche
am Herd
in der Backstube
hinter dem Tresen
[titel]
{ein speise n} für viele Gäste
Wie man {ein speise a} macht
Das Rezept aus {ort}
"""

WERKSTATT = """
[tun]
reparieren: {ein möbel a} mit {ein werkzeug d +}
schleifen: die Kanten {der möbel g} glatt
schärfen: {der werkzeug a}
sägen: {zahl 2-12} Bretter für {ein möbel a +}
leimen: das gebrochene Bein {der möbel g}
polieren: {der möbel a} mit einem weichen Tuch
nähen: {ein kleidung a +} für {der mensch a}
flicken: {ein kleidung a}
suchen: {der werkzeug a} in {ein gefäß d}
leihen: {der mensch d} {ein werkzeug a}
hängen: {der werkzeug a} an den Haken
auf|räumen: die Werkbank und {ein möbel a}
nach|messen: die Länge {der möbel g} genau
bauen: {ein möbel a +} aus <Eichenholz|Kiefernholz|alten Brettern|Buchenholz>
schmieden: {zahl 4-30} <Nägel|Haken|Beschläge> für {ein gefäß a}
bemalen: {ein gefäß a} mit <Blumen|kleinen Vögeln|blauen Sternen|bunten Streifen>
ein|wickeln: {der ding a} in <Papier|ein weiches Tuch|Stroh>
[lage]
{der werkzeug n -}|{adj werkzeug}|war
das Holz|noch zu feucht|war
ein Bein {der möbel g}|deutlich kürzer|war
{der werkzeug n}|spurlos verschwunden|war
der Leim|über Nacht nicht getrocknet|war
{der kleidung n}|an beiden Ellbogen dünn|wurde
[bild]
Auf dem Boden lagen <Späne|Stoffreste|krumme Nägel>, und an der Wand hing {ein werkzeug n +}.
Es roch nach <Holz und Leim|Leder|Öl|frischer Farbe>.
Neben der Tür lehnte {ein werkzeug n}, davor stand {ein möbel n +}.
Durch das staubige Fenster fiel <ein Streifen Sonne|das graue Licht des Nachmittags> auf {ein möbel a}.
In {ein gefäß d +} sammelten sich <Schrauben|Knöpfe|Nägel|Reste> aus vielen Jahren.
Der Hund des Nachbarn schlief unter {der möbel d} und träumte.
[rede]
Mit {ein werkzeug d} geht es doppelt so schnell.
{dies möbel n} hat schon mein Großvater gebaut.
Wer hat {mein werkzeug a} genommen?
Miss lieber zweimal, dann musst du nur einmal sägen.
Bis <Freitag|Montag|übermorgen> wird {der möbel n} fertig, versprochen.
Für {ein kleidung a} brauche ich {zahl 2-6} Meter Stoff.
[ort]
in der Werkstatt
an der Werkbank
im Schuppen
neben dem Amboss
[titel]
{ein möbel n} aus alten Brettern
Wie man {ein möbel a} repariert
In der Werkstatt
"""

MASCHINEN = """
[tun]
zerlegen: {ein maschine a +} in alle Einzelteile
ölen: {der teil a pl} {der maschine g}
ersetzen: {der teil a +} durch {ein teil a +}
prüfen: {der maschine a} auf Fehler
drehen: langsam an {der teil d}
ein|bauen: {ein teil a} in {der maschine a}
an|stellen: {der maschine a} zum ersten Mal seit {zahl 2-30} Jahren
ab|stellen: {der maschine a}
zeichnen: einen Plan {der maschine g}
erklären: {der mensch d} {der maschine a}
reinigen: {der teil a pl} mit {ein ding d}
untersuchen: {der maschine a} mit {ein werkzeug d}
heraus|ziehen: {der teil a} vorsichtig
lösen: {num teil a} mit {ein werkzeug d}
bestellen: {num teil a +} in {ort}
an|schließen: {der maschine a} an {ein maschine a}
notieren: die Nummer {der teil g} auf {ein schrift d}
[lage]
{der maschine n}|keinen Ton mehr von sich|gab
{ein teil n}|im Getriebe|fehlte
{der teil n -}|{adj teil}|war
{der maschine n}|jede Stunde {zahl 2-15} Minuten|verlor
der Druck im Kessel|langsam|stieg
{der maschine n -}|viel zu {adj maschine}|wurde
[bild]
{der maschine n +} <ratterte|brummte|klapperte|quietschte> so laut, dass man kaum ein Wort verstand.
Überall lagen {0 teil n pl} und {0 werkzeug n pl}.
Auf {ein schrift d} standen die Maße: {#12-90} Zentimeter lang, {#3-11} Zentimeter breit.
Ein dünner Faden Rauch stieg aus {der maschine d} auf.
Neben {der maschine d} stand {ein gefäß n} mit <Öl|Schrauben|Putzlappen>.
An der Rückseite {der maschine g} glänzte {ein teil n +}.
[rede]
{ein teil n} ist locker, das hört man doch.
{der maschine n} läuft wieder, ist das nicht wunderbar?
So {ein maschine a} baut heute niemand mehr.
Fass {der teil a} nicht an, bevor alles steht!
Das Geräusch kommt nicht von {der maschine d}, sondern von {der teil d}.
Im Jahr {#1871-1939} kostete {ein maschine n} {#20-95} Taler.
[ort]
im Maschinenraum
in der Halle
neben dem Kessel
an der Drehbank
[titel]
Die Geschichte {ein maschine g +}
Wie man {ein maschine a} wartet
{ein maschine n} aus {ort}
"""

MEER = """
[tun]
flicken: {der schiffszeug a +} mit {ein werkzeug d}
steuern: {der boot a} an <den Felsen|der Sandbank|der Mole> vorbei
beladen: {der boot a} mit {num gefäß d}
werfen: {der schiffszeug a} über Bord
fangen: {zahl 3-60} <Heringe|Makrelen|Krabben|Dorsche>
rudern: mit {ein boot d} <zur Insel|in die Bucht|ans andere Ufer>
an|streichen: {der boot a} <blau|weiß|grün>
beobachten: {ein boot a} durch das Fernrohr
auf|rollen: {der schiffszeug a} sorgfältig
retten: {der mensch a} aus {ein boot d}
binden: {der boot a} an {der schiffszeug a}
trocknen: {der schiffszeug a pl} in der Sonne
ein|tragen: den Kurs in {der schrift a}
warten: auf die Flut
nach|winken: {der boot d} vom Steg aus
verkaufen: {der mensch d} {zahl 2-9} Kisten Fisch
hören: <das Nebelhorn|die Möwen|die Glocke der Boje|den Wind in den Masten>
[lage]
{der boot n -}|{adj boot}|war
die See|am Abend ruhiger|wurde
{der schiffszeug n}|in der Nacht gerissen|war
der Wind|auf Nordwest|drehte
{der boot n}|seit {zahl 2-9} Tagen überfällig|war
das Wasser|bis an die Kaimauer|reichte
[bild]
<Die Wellen|Graue Wellen|Hohe Wellen> schlugen gegen {der boot a +}, und die Möwen schrien.
Am Horizont erschien {ein boot n +}.
Der Leuchtturm von {ort} warf alle {zahl 5-20} Sekunden einen Strahl über das Wasser.
Auf der Mole trockneten {num schiffszeug n +}.
Es roch nach <Tang und Salz|Teer|Fisch und Diesel>, und der Wind kam von <Osten|Norden|Westen>.
Bei Ebbe lag {der boot n} schief im Schlick.
[rede]
Bei diesem Wind läuft {kein boot n} aus.
{der schiffszeug n} hält noch eine Fahrt, mehr nicht.
Siehst du {der boot a} dort draußen?
Wir sind um {#4-7} Uhr ausgelaufen und erst bei Dunkelheit heimgekommen.
Ein guter Seemann prüft {der schiffszeug a} jeden Abend.
Noch {zahl 2-12} Seemeilen, dann sind wir zu Hause.
[ort]
am Hafen
auf der Mole
an Bord
unten am Strand
[titel]
Ein Tag auf See
{ein boot n} im Nebel
Der Hafen von {ort}
"""

SCHULE = """
[tun]
lesen: {der schrift a +} bis zur letzten Seite
schreiben: {ein schrift a +} an {der mensch a}
erklären: {der mensch d} die Aufgabe mit {ein schulding d}
rechnen: {zahl 3-20} Aufgaben an der Tafel
vergessen: {der schulding a} zu Hause
leihen: {der mensch d} {der schulding a}
zeichnen: {ein wildtier a} in {der schrift a}
lernen: {ein schrift a} auswendig
vor|lesen: {der mensch d} aus {ein schrift d} 
zählen: {der schulding a pl} im Schrank
verbessern: die Fehler in {der schrift d}
suchen: {ort} auf der Landkarte
ordnen: {der schrift a pl} nach dem Alphabet
übersetzen: {ein schrift a +} ins <Englische|Französische|Italienische>
beantworten: {zahl 2-12} Fragen über {der wildtier a pl}
ab|geben: {der schrift a} pünktlich
basteln: {ein ding a +} aus Papier
[lage]
{der schulding n}|in der Pause verschwunden|war
die Aufgabe|viel schwerer als gestern|war
{der schrift n}|genau {#12-480} Seiten|hatte
die Hälfte der Klasse|erkältet|war
{der schrift n -}|{adj schrift}|war
der Unterricht|wegen {der wetter g} ausgefallen|war
[bild]
Auf dem Pult lag {ein schulding n +} neben {ein schrift d}.
Die Kreide quietschte, und jemand in der letzten Reihe kicherte.
An der Wand hing eine Karte von {ort} und Umgebung.
Vor den Fenstern fiel <leiser Schnee|ein feiner Regen|gelbes Laub>.
In den Regalen standen {#200-900} Bücher, die meisten davon <alt|dick|auf Latein|noch ungelesen>.
Die Glocke läutete, doch niemand sprang auf.
[rede]
Wie viel ist {zahl 11-19} mal {zahl 3-9}?
Wer {ein schrift a} ausleiht, bringt das Blatt bitte unterschrieben zurück.
Hast du {der schulding a} gesehen?
Ich verstehe {der schrift a} nicht, kannst du mir helfen?
Morgen schreiben wir über {ein wildtier a}.
In {dies schrift d} steht etwas ganz anderes.
[ort]
im Klassenzimmer
in der Bibliothek
auf dem Schulhof
in der ersten Reihe
[titel]
Ein Aufsatz über {ein wildtier a}
Der letzte Schultag
{ein schrift n +} in der Bibliothek
"""

GARTEN = """
[tun]
pflanzen: {num pflanze a} neben {der gebäude a}
gießen: {der pflanze a pl} mit {ein gefäß d}
schneiden: {der pflanze a +} mit {ein werkzeug d}
graben: mit {ein werkzeug d} ein Loch für {ein pflanze a}
ernten: {zahl 2-25} Kilo {0 zutat a pl}
jäten: das Unkraut zwischen {der pflanze d pl}
säen: Samen von {num pflanze d} in kleine Töpfe
zusammen|harken: das Laub unter {der pflanze d}
füttern: die Vögel mit <Körnern|Apfelstücken|Nüssen>
tragen: {ein gefäß a} mit {0 zutat d pl} zum Tor
pflücken: einen Strauß für {der mensch a}
binden: {der pflanze a} an einen Stab
vertreiben: {ein wildtier a} aus dem Beet
tauschen: {num zutat a} gegen {ein pflanze a}
bauen: ein Nest für {ein wildtier a}
beobachten: {ein wildtier a +} unter {der pflanze d}
[lage]
{der pflanze n -}|in diesem Jahr besonders {adj pflanze}|war
der Boden|hart wie Stein|war
{ein wildtier n}|unter {der pflanze d}|wohnte
{der zutat n pl}|voller Würmer|waren
der Regen|endlich|kam
{der pflanze n}|zum ersten Mal|blühte
[bild]
Zwischen {der pflanze d pl} summten die Bienen.
Ein Schmetterling setzte sich auf {ein pflanze a +}.
Am Zaun lehnte {ein werkzeug n +}, und daneben wuchs {ein pflanze n}.
Die Erde war <feucht|warm|schwer|locker> und roch nach <Regen|Moos|Sommer>.
{ein wildtier n +} raschelte unter {der pflanze d}.
Auf dem Beet leuchteten die ersten {0 zutat n pl -}.
[rede]
{ein pflanze n} braucht viel <Wasser|Sonne|Platz> und noch mehr Geduld.
Im {monat} ist es für {0 pflanze a pl} zu früh.
Wer hat {mein pflanze a} abgeschnitten?
Wenn {der wetter n} kommt, müssen {der pflanze n pl} ins Haus.
So viele {0 zutat a pl} hatten wir noch nie.
Lass {der wildtier a}, es tut doch nichts.
[ort]
im Garten
hinter dem Gewächshaus
zwischen den Beeten
unter der alten Linde
[titel]
Mein Garten im {monat}
Wie man {ein pflanze a} pflanzt
{ein wildtier n} im Beet
"""

WALD = """
[tun]
folgen: der Spur {ein wildtier g}
sammeln: <Pilze|Beeren|Zapfen|trockenes Holz> in {ein gefäß d}
entdecken: {ein wildtier a +} hinter {ein pflanze d}
besteigen: <den Hausberg|den alten Turm|den höchsten Felsen>
wandern: {zahl 4-30} Kilometer bis {ort}
klettern: über einen umgestürzten Stamm
fotografieren: {ein wildtier a +}
ruhen: eine Weile im Schatten {ein pflanze g +}
verlieren: {ein kleidung a} im Gebüsch
überqueren: {der gewässer a +} auf einem Baumstamm
auf|schlagen: das Zelt neben {ein gewässer d}
hören: in der Ferne {ein wildtier a}
essen: auf {ein anhöhe d +} ein Stück Brot mit Käse
füllen: {der gefäß a} mit Quellwasser
markieren: {der pflanze a pl} mit weißer Farbe
zählen: die Ringe einer gefällten <Eiche|Birke|Tanne|Buche|Kiefer>
um|kehren: kurz vor dem Gipfel
[lage]
der Weg|hinter {der anhöhe d} plötzlich|aufhörte
{ein wildtier n}|ganz in der Nähe|rief
der Nebel|immer dichter|wurde
die Hütte|noch {zahl 3-9} Kilometer entfernt|war
{der anhöhe n -}|{adj anhöhe}|war
unter den Bäumen|noch Schnee|lag
[bild]
Zwischen den Stämmen war es <dämmrig|kühl|so still, dass man die Käfer hörte>.
{ein wildtier n +} lief über den Weg und verschwand im Farn.
Von {der anhöhe d} blickte man weit über {der landschaft a +}.
Unter den Schuhen <knirschte der Schnee|knackten die Zweige|raschelte das Laub>.
Ein Wegweiser zeigte nach {ort}: noch {#2-9} Stunden.
An einer <alten Eiche|hohlen Birke|hohen Buche|kahlen Kiefer> bei {der anhöhe d} klopfte ein Specht.
[rede]
Da vorn sitzt {ein wildtier n}, rühr dich nicht!
Wenn wir {der gewässer d} folgen, kommen wir nach {ort}.
Vor {zahl 20-90} Jahren stand hier {ein gebäude n}.
Nimm {ein kleidung a} mit, oben ist es kalt.
Die Spur gehört zu {ein wildtier d}.
Noch eine Stunde, dann machen wir Rast.
[ort]
im Wald
auf dem Gipfel
am Rand der Lichtung
oben auf dem Kamm
[titel]
Eine Wanderung nach {ort}
Die Spur {der wildtier g}
Nachts im Wald
"""

HOF = """
[tun]
füttern: {der tier a pl} mit Heu und Hafer
melken: {zahl 4-30} Kühe vor Sonnenaufgang
treiben: {der tier a pl} auf die Weide
suchen: {der tier a +} in {der gebäude d}
fangen: {ein tier a +} hinter {der gebäude d}
scheren: {zahl 3-40} Schafe an einem Tag
bürsten: {der tier a}
reparieren: {der fahrzeug a +} mit {ein werkzeug d}
sammeln: {zahl 5-50} Eier in {ein gefäß d}
verkaufen: {ein tier a +} an {ein mensch a}
streicheln: {der tier a +}
laden: {num gefäß a} auf {der fahrzeug a}
mahlen: {zahl 2-9} Säcke Korn
taufen: {der tier a} auf den Namen {name}
aus|misten: den Stall
tragen: {ein tier a} auf dem Arm ins Haus
ein|spannen: {der tier a} vor {ein fahrzeug a}
[lage]
{der tier n -}|{adj tier}|war
{der tier n}|seit dem Morgen nichts|fraß
der Zaun|an {zahl 2-6} Stellen kaputt|war
{ein wildtier n}|nachts um den Stall|schlich
das Heu|noch nass|war
{der tier n}|auf keinen Namen|hörte
[bild]
{ein tier n +} stand mitten auf dem Hof und rührte sich nicht.
Aus dem Stall hörte man {der tier a pl}.
Auf dem Dach {der gebäude g} saß {ein wildtier n}.
Die Sonne ging auf, und der Hahn krähte zum {#2-9}. Mal.
Neben {der fahrzeug d} schlief {ein tier n +} im Stroh.
Es war Erntezeit, und jeder half, sogar {der mensch n}.
[rede]
{der tier n} hat wieder {ein kleidung a} gefressen.
Ein gutes Tier ist mehr wert als {ein fahrzeug n}.
Mach das Tor zu, sonst laufen {der tier n pl} weg!
Heute Nacht ist {ein tier n} zur Welt gekommen.
Was kostet {ein tier n} bei euch in {ort}?
Vor {ein tier d +} braucht man keine Angst zu haben.
[ort]
auf dem Hof
im Stall
auf der Weide
hinter der Scheune
[titel]
{ein tier n} namens {name}
Ein Morgen auf dem Hof
Der Markttag in {ort}
"""

DORF = """
[tun]
bringen: {der mensch d} {ein schrift a}
kaufen: {ein ding a +} auf dem Markt
grüßen: {der mensch a +}
verkaufen: {num ding a} für {#2-40} Euro
organisieren: {ein fest a +} vor {der gebäude d}
schmücken: {der gebäude a} mit {0 pflanze d pl}
besuchen: {der mensch a} in {der gebäude d +}
finden: {ein ding a +} vor {der gebäude d}
verteilen: {0 schrift a pl} an alle Haushalte
eröffnen: {ein gebäude a +} in {ort}
tragen: {ein gefäß a} quer über den Platz
besprechen: {der fest a} mit {der mensch d}
tauschen: {ein ding a} gegen {ein ding a +}
fragen: {der mensch a} nach dem Weg zu {der gebäude d}
läuten: die Glocken um {zahl 2-12} Uhr
unterschreiben: {ein schrift a} im Rathaus
sammeln: Geld für {ein gebäude a +}
[lage]
{der gebäude n}|seit {zahl 2-30} Jahren leer|stand
{der fest n}|erst für den {monat} geplant|war
{der mensch n}|gern und lange|redete
die Uhr am Rathaus|schon wieder um {zahl 2-12} Uhr stehen geblieben|war
{der gebäude n -}|{adj gebäude}|war
{der ding n}|niemandem|gehörte
[bild]
Vor {der gebäude d} warteten {num mensch n} und {ein tier n}.
Auf dem Platz verkaufte man {0 zutat a pl}, {0 ding a pl} und sogar {ein tier a}.
Die Glocke schlug {zahl 2-12}, und {ein mensch n +} schloss die Läden.
Zwischen {der gebäude d} und {der gebäude d} spannte sich eine Leine mit Wäsche.
In {ort} leben {#120-980} Menschen und fast ebenso viele {0 tier n pl -}.
{ein mensch n +} kehrte die Stufen vor {der gebäude d}.
[rede]
Haben Sie schon von {der fest d} gehört?
Am Samstag öffnet {der gebäude n} erst um {zahl 9-11} Uhr.
Früher war {der gebäude n} eine Schule.
Für {ein ding a} zahle ich höchstens {zahl 3-40} Euro.
Grüßen Sie bitte {der mensch a} von mir!
In {ort} erzählt man sich etwas anderes.
[ort]
auf dem Marktplatz
vor dem Rathaus
im Laden
an der Ecke
[titel]
Neues aus {ort}
{ein fest n +} in {ort}
{ein gebäude n} mit Geschichte
"""

REISE = """
[tun]
packen: {ein kleidung a}, {ein ding a} und {ein schrift a} in {der gefäß a}
verpassen: {der fahrzeug a} nach {ort}
steigen: in {der fahrzeug a +}
kaufen: eine Fahrkarte nach {ort}
besichtigen: {ein gebäude a +} in {ort}
fotografieren: {ein gebäude a +} von allen Seiten
schreiben: {num schrift a} an {der mensch a pl}
übernachten: in {ein gebäude d +}
verlieren: {ein ding a} in {der fahrzeug d}
fragen: {der mensch a} nach {ein gebäude d}
mieten: {ein fahrzeug a} für {zahl 2-9} Tage
tragen: {der gefäß a +} die Treppe hinauf
warten: {zahl 2-9} Stunden auf {der fahrzeug a}
teilen: das Abteil mit {ein mensch d +}
lernen: {zahl 5-50} Wörter der fremden Sprache
überqueren: {der gewässer a} mit {ein fahrzeug d}
auf|brechen: noch vor Sonnenaufgang
[lage]
{der fahrzeug n}|{zahl 10-50} Minuten Verspätung|hatte
{der fahrzeug n -}|{adj fahrzeug}|war
die Grenze|über Nacht geschlossen|war
das Gepäck|in {ort} geblieben|war
{der gebäude n}|nur am Vormittag geöffnet|hatte
die Reise|länger als geplant|dauerte
[bild]
{der fahrzeug n} hielt auf freier Strecke, und alle sahen aus dem Fenster.
Hinter {ort} wurde die Landschaft <flacher|wilder|grüner>, und man sah {ein gewässer a +}.
Auf dem Bahnsteig standen {num mensch n} und {ein gefäß n +}.
Die Fahrt von {ort} nach {ort} dauerte {zahl 2-15} Stunden.
Gegenüber saß {ein mensch n +} mit {ein gefäß d} auf den Knien.
Am Abend glänzten die Lichter von {ort} in {der gewässer d}.
[rede]
Ist in {dies fahrzeug d} noch ein Platz frei?
Nach {ort} fährt heute nichts mehr.
Wem gehört {dies gefäß n +}?
Von {ort} bis {ort} sind es {zahl 20-90} Kilometer.
Vergiss {der kleidung a} nicht, im Gebirge schneit es.
Den schönsten Blick hat man von {der gebäude d}.
[ort]
im Zug
auf dem Bahnsteig
unterwegs
am Schalter
[titel]
Von {ort} nach {ort}
Reise mit {ein gefäß d +}
Drei Tage in {ort}
"""

MUSIK = """
[tun]
üben: {ein stück a +} auf {der instrument d}
vor|spielen: {der mensch d} {ein stück a}
stimmen: {der instrument a +}
singen: {ein stück a +} mit {der mensch d pl}
komponieren: {ein stück a} für {ein instrument a} und {ein instrument a}
hören: {ein stück a} aus {der gebäude d}
reparieren: {ein instrument a +}
leihen: {der mensch d} {der instrument a}
kaufen: {ein instrument a +} auf einer Auktion
proben: {der stück a} zum {#3-9}. Mal
wiederholen: den Anfang {der stück g}
begleiten: den Chor auf {ein instrument d}
tanzen: zu {ein stück d +} durch {der raum a}
dirigieren: {zahl 8-40} Musiker
auf|schreiben: die Noten {der stück g}
unterrichten: {zahl 2-12} Kinder auf {der instrument d}
[lage]
{der instrument n -}|{adj instrument}|war
eine Saite|gerissen|war
{der stück n -}|{adj stück}|klang
das Konzert|ausverkauft|war
der Chor|einen halben Ton zu tief|sang
{der instrument n}|seit {zahl 10-90} Jahren der Familie|gehörte
[bild]
Aus dem offenen Fenster klang {ein stück n +}.
In der Ecke stand {ein instrument n}, daneben lehnte {ein instrument n +}.
Der Saal war bis auf {zahl 2-9} Plätze besetzt.
Die Noten lagen <auf dem Boden|auf dem Klavier|in {ein gefäß d}>, und niemand fand die {#2-12}. Seite.
Nach dem letzten Ton blieb es lange still.
{ein mensch n +} summte {der stück a} leise mit.
[rede]
{der stück n} muss leiser beginnen.
Auf {ein instrument d} klingt alles traurig.
Wer spielt heute {der instrument a}?
Noch einmal von vorn, und bitte zusammen!
Dieses Lied hat mir {mein verwandt n} beigebracht.
{ein instrument n} ist nichts für Ungeduldige.
[ort]
im Konzertsaal
im Probenraum
auf der Bühne
in der Musikschule
[titel]
{ein instrument n} auf dem Dachboden
Das Konzert in {ort}
{ein stück n +} für {name}
"""

HAUS = """
[tun]
streichen: {der raum a} <hellblau|gelb|weiß|grün>
schieben: {der möbel a +} in {der raum a}
putzen: die Fenster {der raum g}
decken: das Dach {der gebäude g} neu
finden: hinter {der möbel d} {ein ding a +}
auf|räumen: {der raum a +}
verlegen: neue Dielen in {der raum d}
reparieren: {der möbel a} mit {ein werkzeug d}
hängen: {ein ding a +} über {der möbel a}
heizen: {der raum a} mit Holz
suchen: {der ding a} in {der raum d}
öffnen: {ein gefäß a +} aus {der raum d}
ab|dichten: die Fugen in {der raum d}
verkaufen: {der möbel a +} an {ein mensch a}
mauern: eine Wand zwischen {der raum d} und {der raum d}
tragen: {num gefäß a} in {der raum a}
kleben: eine Tapete mit <Streifen|Blumen|kleinen Schiffen>
[lage]
{der raum n -}|{adj raum}|war
das Dach|an {zahl 2-5} Stellen undicht|war
{der möbel n}|nicht durch die Tür|passte
der Schlüssel|nicht ins Schloss|passte
die Heizung|seit {zahl 2-6} Tagen kalt|blieb
{der ding n}|unter {der möbel d}|lag
[bild]
In {der raum d} standen {ein möbel n +}, {ein möbel n} und {num gefäß n}.
Die Treppe knarrte bei jedem Schritt.
Es regnete durch das Dach, und auf dem Boden standen {num gefäß n}.
Die Tapete in {der raum d} war <grün|verblichen|an einer Ecke abgerissen>.
Aus {der raum d} drang ein <leises|seltsames|dumpfes> Geräusch.
Auf {der möbel d} lag der Staub von {zahl 3-40} Jahren.
[rede]
{der möbel n} kommt in {der raum a}, nicht hierhin.
Wie lange wollen Sie in {dies raum d} bleiben?
{dies möbel n} verkaufe ich auf keinen Fall.
Unter den Dielen lag {ein gefäß n +}.
Die Miete beträgt {#180-690} Euro im Monat.
In {der raum d} zieht es seit dem Herbst.
[ort]
im Treppenhaus
auf dem Dachboden
im Keller
auf dem Dach
[titel]
{ein raum n} unter dem Dach
Wie man {ein raum a} streicht
Ein Haus in {ort}
"""

DOMAINS = {
    "küche": KÜCHE, "werkstatt": WERKSTATT, "maschinen": MASCHINEN, "meer": MEER, "schule": SCHULE, "garten": GARTEN,
    "wald": WALD, "hof": HOF, "dorf": DORF, "reise": REISE, "musik": MUSIK, "haus": HAUS,
}  # fmt: skip
