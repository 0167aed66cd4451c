"""German words of the quickstart corpus: nouns by class, adjectives by class, strong verbs, names.

A noun is ``Nominative gender genitive plural``; the genitive is an ending (``s``, ``es``, ``-`` for none, and ``n`` or
``en`` for the weak masculines, which take it in every case but the first). A plural ``-`` means there is none.
"""

NOUNS = """
werkzeug: Hammer m s Hämmer, Säge f - Sägen, Zange f - Zangen, Feile f - Feilen, Axt f - Äxte, Bohrer m s Bohrer,
  Hobel m s Hobel, Meißel m s Meißel, Spaten m s Spaten, Rechen m s Rechen, Besen m s Besen, Leiter f - Leitern,
  Schaufel f - Schaufeln, Pinsel m s Pinsel, Schere f - Scheren, Taschenmesser n s Taschenmesser, Kelle f - Kellen,
  Schraubstock m s Schraubstöcke, Maßband n es Maßbänder, Wasserwaage f - Wasserwaagen
gefäß: Korb m es Körbe, Eimer m s Eimer, Kiste f - Kisten, Fass n es Fässer, Krug m es Krüge, Flasche f - Flaschen,
  Koffer m s Koffer, Sack m es Säcke, Tasche f - Taschen, Schachtel f - Schachteln, Truhe f - Truhen, Kanne f - Kannen,
  Rucksack m s Rucksäcke, Karton m s Kartons, Bottich m s Bottiche, Beutel m s Beutel
geschirr: Topf m es Töpfe, Schüssel f - Schüsseln, Pfanne f - Pfannen, Kessel m s Kessel, Teller m s Teller,
  Tasse f - Tassen, Becher m s Becher, Backform f - Backformen, Sieb n es Siebe, Auflaufform f - Auflaufformen
möbel: Tisch m es Tische, Stuhl m es Stühle, Bank f - Bänke, Schrank m es Schränke, Bett n es Betten,
  Sessel m s Sessel, Regal n s Regale, Hocker m s Hocker, Sofa n s Sofas, Kommode f - Kommoden, Schreibtisch m es Schreibtische,
  Schaukelstuhl m s Schaukelstühle, Wiege f - Wiegen, Anrichte f - Anrichten
speise: Suppe f - Suppen, Kuchen m s Kuchen, Eintopf m s Eintöpfe, Braten m s Braten, Torte f - Torten, Auflauf m s Aufläufe,
  Salat m s Salate, Pudding m s Puddings, Strudel m s Strudel, Pastete f - Pasteten, Apfelkuchen m s Apfelkuchen,
  Brei m s Breie, Pfannkuchen m s Pfannkuchen, Soße f - Soßen, Brühe f - Brühen, Gemüsepfanne f - Gemüsepfannen
zutat: Zwiebel f - Zwiebeln, Kartoffel f - Kartoffeln, Möhre f - Möhren, Apfel m s Äpfel, Birne f - Birnen, Ei n s Eier,
  Tomate f - Tomaten, Gurke f - Gurken, Zitrone f - Zitronen, Pflaume f - Pflaumen, Nuss f - Nüsse, Kirsche f - Kirschen,
  Bohne f - Bohnen, Pilz m es Pilze, Kürbis m ses Kürbisse, Rübe f - Rüben, Quitte f - Quitten, Aprikose f - Aprikosen
vorrat: Mehl n s -, Zucker m s -, Salz n es -, Butter f - -, Milch f - -, Honig m s -, Öl n s -, Reis m es -, Käse m s -,
  Hefe f - -, Sahne f - -, Zimt m s -, Essig m s -, Quark m s -, Senf m s -, Mohn m s -
tier: Hund m es Hunde, Katze f - Katzen, Pferd n es Pferde, Kuh f - Kühe, Ziege f - Ziegen, Schaf n es Schafe, Gans f - Gänse,
  Ente f - Enten, Esel m s Esel, Kaninchen n s Kaninchen, Kalb n es Kälber, Huhn n es Hühner, Ferkel n s Ferkel, Kater m s Kater,
  Lamm n es Lämmer, Fohlen n s Fohlen, Pony n s Ponys, Hahn m es Hähne
wildtier: Fuchs m es Füchse, Igel m s Igel, Storch m es Störche, Rabe m n Raben, Eule f - Eulen, Schwan m es Schwäne,
  Schwalbe f - Schwalben, Hase m n Hasen, Dachs m es Dachse, Biber m s Biber, Reh n es Rehe, Specht m es Spechte, Frosch m es Frösche,
  Eichhörnchen n s Eichhörnchen, Marder m s Marder, Kranich m s Kraniche, Amsel f - Amseln, Fledermaus f - Fledermäuse
pflanze: Rose f - Rosen, Tulpe f - Tulpen, Strauch m es Sträucher, Hecke f - Hecken, Eiche f - Eichen, Linde f - Linden,
  Birke f - Birken, Tanne f - Tannen, Sonnenblume f - Sonnenblumen, Farn m s Farne, Distel f - Disteln, Weide f - Weiden,
  Kastanie f - Kastanien, Veilchen n s Veilchen, Apfelbaum m s Apfelbäume, Nelke f - Nelken, Kirschbaum m s Kirschbäume,
  Efeuranke f - Efeuranken, Holunderbusch m es Holunderbüsche
gebäude: Haus n es Häuser, Kirche f - Kirchen, Schule f - Schulen, Mühle f - Mühlen, Scheune f - Scheunen, Turm m es Türme,
  Rathaus n es Rathäuser, Bahnhof m s Bahnhöfe, Bäckerei f - Bäckereien, Laden m s Läden, Gasthaus n es Gasthäuser,
  Museum n s Museen, Bibliothek f - Bibliotheken, Schloss n es Schlösser, Fabrik f - Fabriken, Hütte f - Hütten, Stall m s Ställe,
  Markthalle f - Markthallen, Kapelle f - Kapellen
raum: Küche f - Küchen, Keller m s Keller, Stube f - Stuben, Zimmer n s Zimmer, Flur m s Flure, Speisekammer f - Speisekammern,
  Garage f - Garagen, Büro n s Büros, Saal m s Säle, Werkstatt f - Werkstätten, Dachkammer f - Dachkammern, Waschküche f - Waschküchen
landschaft: Wald m es Wälder, Tal n s Täler, Garten m s Gärten, Park m s Parks, Schlucht f - Schluchten, Bucht f - Buchten,
  Heide f - Heiden, Gasse f - Gassen, Stadt f - Städte, Dorf n es Dörfer, Moor n s Moore, Obstgarten m s Obstgärten
gewässer: See m s Seen, Fluss m es Flüsse, Bach m es Bäche, Kanal m s Kanäle, Teich m es Teiche, Weiher m s Weiher,
  Hafen m s Häfen, Brunnen m s Brunnen, Strand m es Strände, Wasserfall m s Wasserfälle
anhöhe: Berg m es Berge, Hügel m s Hügel, Wiese f - Wiesen, Insel f - Inseln, Alm f - Almen, Düne f - Dünen, Brücke f - Brücken,
  Lichtung f - Lichtungen, Weide f - Weiden, Landstraße f - Landstraßen, Anhöhe f - Anhöhen
fahrzeug: Wagen m s Wagen, Fahrrad n es Fahrräder, Zug m es Züge, Bus m ses Busse, Traktor m s Traktoren, Kutsche f - Kutschen,
  Straßenbahn f - Straßenbahnen, Lastwagen m s Lastwagen, Schlitten m s Schlitten, Fähre f - Fähren, Karren m s Karren,
  Lieferwagen m s Lieferwagen, Seilbahn f - Seilbahnen
boot: Boot n es Boote, Schiff n es Schiffe, Kutter m s Kutter, Ruderboot n es Ruderboote, Segelboot n es Segelboote,
  Frachter m s Frachter, Dampfer m s Dampfer, Schlepper m s Schlepper, Kahn m s Kähne, Lotsenboot n es Lotsenboote
schiffszeug: Segel n s Segel, Anker m s Anker, Mast m es Masten, Ruder n s Ruder, Netz n es Netze, Tau n s Taue, Fender m s Fender,
  Kompass m es Kompasse, Laterne f - Laternen, Seekarte f - Seekarten, Fernrohr n s Fernrohre, Flagge f - Flaggen, Boje f - Bojen
maschine: Standuhr f - Standuhren, Dampfmaschine f - Dampfmaschinen, Nähmaschine f - Nähmaschinen, Pumpe f - Pumpen,
  Druckpresse f - Druckpressen, Kaffeemühle f - Kaffeemühlen, Schreibmaschine f - Schreibmaschinen, Motor m s Motoren,
  Ofen m s Öfen, Radio n s Radios, Drehbank f - Drehbänke, Webstuhl m s Webstühle, Kran m s Kräne, Rasenmäher m s Rasenmäher,
  Generator m s Generatoren, Waage f - Waagen, Spieluhr f - Spieluhren, Wecker m s Wecker
teil: Schraube f - Schrauben, Feder f - Federn, Zahnrad n es Zahnräder, Kette f - Ketten, Riemen m s Riemen, Hebel m s Hebel,
  Ventil n s Ventile, Kabel n s Kabel, Schalter m s Schalter, Rohr n es Rohre, Kolben m s Kolben, Dichtung f - Dichtungen,
  Griff m es Griffe, Kurbel f - Kurbeln, Lager n s Lager, Zeiger m s Zeiger, Bolzen m s Bolzen
kleidung: Mantel m s Mäntel, Hut m es Hüte, Schal m s Schals, Hemd n es Hemden, Kleid n es Kleider, Jacke f - Jacken,
  Mütze f - Mützen, Schürze f - Schürzen, Pullover m s Pullover, Weste f - Westen, Hose f - Hosen, Rock m es Röcke, Umhang m s Umhänge
schrift: Brief m es Briefe, Buch n es Bücher, Zeitung f - Zeitungen, Postkarte f - Postkarten, Heft n es Hefte, Liste f - Listen,
  Zettel m s Zettel, Landkarte f - Landkarten, Tagebuch n es Tagebücher, Rechnung f - Rechnungen, Einladung f - Einladungen,
  Zeichnung f - Zeichnungen, Fahrplan m s Fahrpläne, Lexikon n s Lexika, Gedicht n es Gedichte, Notiz f - Notizen
schulding: Tafel f - Tafeln, Bleistift m s Bleistifte, Lineal n s Lineale, Schulheft n s Schulhefte, Globus m - Globen,
  Füller m s Füller, Zirkel m s Zirkel, Wörterbuch n es Wörterbücher, Federmappe f - Federmappen, Rechenschieber m s Rechenschieber,
  Mikroskop n s Mikroskope, Schulranzen m s Schulranzen
instrument: Geige f - Geigen, Klavier n s Klaviere, Flöte f - Flöten, Trommel f - Trommeln, Gitarre f - Gitarren, Harfe f - Harfen,
  Trompete f - Trompeten, Akkordeon n s Akkordeons, Orgel f - Orgeln, Cello n s Celli, Klarinette f - Klarinetten, Horn n s Hörner
stück: Walzer m s Walzer, Lied n es Lieder, Marsch m es Märsche, Melodie f - Melodien, Sonate f - Sonaten, Wiegenlied n es Wiegenlieder,
  Tanz m es Tänze, Choral m s Choräle
ding: Schlüssel m s Schlüssel, Lampe f - Lampen, Kerze f - Kerzen, Bild n es Bilder, Vase f - Vasen, Löffel m s Löffel,
  Kissen n s Kissen, Decke f - Decken, Regenschirm m s Regenschirme, Ball m es Bälle, Puppe f - Puppen, Drachen m s Drachen,
  Münze f - Münzen, Knopf m es Knöpfe, Glocke f - Glocken, Seil n s Seile, Spiegel m s Spiegel, Teppich m s Teppiche,
  Brille f - Brillen, Medaille f - Medaillen, Kamm m es Kämme, Fotoapparat m s Fotoapparate
fest: Fest n es Feste, Konzert n s Konzerte, Ausflug m s Ausflüge, Hochzeit f - Hochzeiten, Jahrmarkt m s Jahrmärkte,
  Prüfung f - Prüfungen, Geburtstag m s Geburtstage, Umzug m s Umzüge, Wettbewerb m s Wettbewerbe, Ausstellung f - Ausstellungen,
  Versammlung f - Versammlungen, Theaterstück n s Theaterstücke
wetter: Regen m s -, Sturm m s -, Nebel m s -, Hagel m s -, Frost m es -, Hitze f - -, Schnee m s -, Wind m es -
mensch: Nachbar m n Nachbarn, Bauer m n Bauern, Kind n es Kinder, Gast m es Gäste, Händler m s Händler,
  Junge m n Jungen, Mädchen n s Mädchen, Lehrling m s Lehrlinge, Bürgermeisterin f - Bürgermeisterinnen,
  Briefträger m s Briefträger, Kundin f - Kundinnen, Schaffner m s Schaffner, Verkäuferin f - Verkäuferinnen, Kollege m n Kollegen,
  Ärztin f - Ärztinnen, Wirt m es Wirte, Schülerin f - Schülerinnen, Matrose m n Matrosen, Polizist m en Polizisten
"""

COLOURS = "rot blau grün gelb braun grau weiß schwarz"
PLAIN = "alt neu klein groß schön einfach seltsam gewöhnlich"

ADJECTIVES = {
    "werkzeug": "alt neu schwer leicht rostig scharf stumpf handlich praktisch abgenutzt geliehen lang kurz solide",
    "gefäß": "leer voll schwer leicht groß klein alt hölzern geflochten staubig geräumig stabil " + COLOURS,
    "geschirr": "groß klein sauber gusseisern alt tief flach heiß glänzend emailliert verbeult",
    "möbel": "alt bequem wackelig breit schmal niedrig antik schwer zerkratzt poliert gemütlich dunkel hell",
    "speise": "warm köstlich süß salzig saftig würzig duftend einfach leicht herzhaft gelungen lecker sauer kalt",
    "zutat": "reif frisch klein groß süß saftig fest schrumpelig gewaschen rund weich schön",
    "vorrat": "frisch gut fein teuer heimisch",
    "tier": "alt jung scheu zahm neugierig hungrig müde gefleckt braun weiß schwarz grau mager störrisch brav klein gesund",
    "wildtier": "scheu jung alt flink wachsam hungrig klein groß seltsam vorsichtig still",
    "pflanze": "alt jung hoch prächtig verwelkt blühend kräftig knorrig zart wild schief schön",
    "gebäude": "alt neu verlassen hoch niedrig prächtig berühmt verfallen klein groß schlicht modern windschief still",
    "raum": "eng hell dunkel kühl warm leer unaufgeräumt geräumig niedrig staubig gemütlich still sauber",
    "landschaft": "weit still grün schattig einsam abgelegen schön wild neblig bekannt sonnig windig",
    "gewässer": "tief klar kalt breit flach ruhig trüb nah abgelegen schmal still",
    "anhöhe": "steil grün einsam sonnig windig weit hoch kahl sanft fern berühmt",
    "fahrzeug": "alt neu schnell langsam voll leer rostig laut bequem klapprig verspätet schmutzig grün gelb",
    "boot": "alt neu schnell klein groß schwer seetüchtig morsch schlank hell gepflegt winzig",
    "schiffszeug": "alt neu zerrissen schwer nass rostig schmal groß kostbar brauchbar geflickt hölzern",
    "maschine": "alt neu laut leise schwer kaputt staubig zuverlässig kompliziert empfindlich modern teuer veraltet",
    "teil": "lose verbogen rostig klein kurz passend fehlend gebrochen neu locker winzig verschlissen",
    "kleidung": "warm dünn dick geflickt elegant nass wollen neu alt bunt grau schlicht gestreift kariert dunkel",
    "schrift": "lang kurz dick dünn vergilbt geheim wichtig zerknittert alt neu unleserlich freundlich merkwürdig",
    "schulding": "neu alt zerbrochen sauber groß klein stumpf kostbar bunt verschwunden geliehen praktisch",
    "instrument": "alt verstimmt kostbar neu klein glänzend selbstgebaut geliehen italienisch einfach",
    "stück": "langsam fröhlich traurig alt berühmt schwierig kurz feierlich vergessen heiter",
    "ding": "alt neu klein groß schön zerbrochen kostbar einfach bunt silbern vergessen seltsam billig teuer "
    + COLOURS,
    "fest": "groß klein lang schön unvergesslich wichtig fröhlich laut verregnet gelungen jährlich",
    "wetter": "stark heftig leicht plötzlich anhaltend dicht eisig kräftig ungewöhnlich",
    "mensch": "freundlich jung alt höflich geduldig ungeduldig aufmerksam fleißig müde fröhlich neugierig schweigsam klug",
}

# Strong, mixed and irregular verbs: infinitive, present (er), past (er), participle; + = perfect with "sein".
STRONG = """
backen backt backte gebacken; beginnen beginnt begann begonnen; beschreiben beschreibt beschrieb beschrieben;
betreten betritt betrat betreten; biegen biegt bog gebogen; bieten bietet bot geboten; binden bindet band gebunden;
bitten bittet bat gebeten; bleiben bleibt blieb geblieben +; brechen bricht brach gebrochen; bringen bringt brachte gebracht;
denken denkt dachte gedacht; erfinden erfindet erfand erfunden; erkennen erkennt erkannte erkannt; essen isst aß gegessen;
fahren fährt fuhr gefahren +; fallen fällt fiel gefallen +; fangen fängt fing gefangen; finden findet fand gefunden;
fliegen fliegt flog geflogen +; geben gibt gab gegeben; gehen geht ging gegangen +; gelingen gelingt gelang gelungen +;
gießen gießt goss gegossen; graben gräbt grub gegraben; greifen greift griff gegriffen; halten hält hielt gehalten;
hängen hängt hängte gehängt; heben hebt hob gehoben; helfen hilft half geholfen; kennen kennt kannte gekannt; klingen klingt klang geklungen;
kommen kommt kam gekommen +; laden lädt lud geladen; lassen lässt ließ gelassen; laufen läuft lief gelaufen +; leihen leiht lieh geliehen;
lesen liest las gelesen; liegen liegt lag gelegen; nehmen nimmt nahm genommen; nennen nennt nannte genannt; reiben reibt rieb gerieben;
reiten reitet ritt geritten +; rennen rennt rannte gerannt +; rufen ruft rief gerufen; schieben schiebt schob geschoben;
schlafen schläft schlief geschlafen; schlagen schlägt schlug geschlagen; schleifen schleift schliff geschliffen;
schließen schließt schloss geschlossen; schneiden schneidet schnitt geschnitten; schreiben schreibt schrieb geschrieben;
schwimmen schwimmt schwamm geschwommen +; sehen sieht sah gesehen; singen singt sang gesungen; sitzen sitzt saß gesessen;
sprechen spricht sprach gesprochen; springen springt sprang gesprungen +; stehen steht stand gestanden; steigen steigt stieg gestiegen +;
streichen streicht strich gestrichen; tragen trägt trug getragen; treffen trifft traf getroffen; treiben treibt trieb getrieben;
trinken trinkt trank getrunken; unterbrechen unterbricht unterbrach unterbrochen; unterschreiben unterschreibt unterschrieb unterschrieben;
verbergen verbirgt verbarg verborgen; vergessen vergisst vergaß vergessen; vergleichen vergleicht verglich verglichen;
verlassen verlässt verließ verlassen; verlieren verliert verlor verloren; versprechen verspricht versprach versprochen;
verstehen versteht verstand verstanden; wachsen wächst wuchs gewachsen +; waschen wäscht wusch gewaschen; werfen wirft warf geworfen;
wiegen wiegt wog gewogen; ziehen zieht zog gezogen; zwingen zwingt zwang gezwungen; erhalten erhält erhielt erhalten;
entscheiden entscheidet entschied entschieden; befestigen befestigt befestigte befestigt; bekommen bekommt bekam bekommen;
übernehmen übernimmt übernahm übernommen; betrachten betrachtet betrachtete betrachtet; vertreiben vertreibt vertrieb vertrieben;
gewinnen gewinnt gewann gewonnen; empfangen empfängt empfing empfangen; besteigen besteigt bestieg bestiegen;
wandern wandert wanderte gewandert +; reisen reist reiste gereist +; klettern klettert kletterte geklettert +;
folgen folgt folgte gefolgt +; eilen eilt eilte geeilt +; segeln segelt segelte gesegelt +; rudern rudert ruderte gerudert +;
begegnen begegnet begegnete begegnet +; untersuchen untersucht untersuchte untersucht; überqueren überquert überquerte überquert;
wiederholen wiederholt wiederholte wiederholt; übersetzen übersetzt übersetzte übersetzt; stürzen stürzt stürzte gestürzt +;
unterrichten unterrichtet unterrichtete unterrichtet; übergeben übergibt übergab übergeben; landen landet landete gelandet +;
wandeln wandelt wandelte gewandelt +; überraschen überrascht überraschte überrascht; messen misst maß gemessen;
beladen belädt belud beladen; besprechen bespricht besprach besprochen;
auf|wachen wacht wachte gewacht +; auf|stehen steht stand gestanden +; ein|schlafen schläft schlief geschlafen +;
zurück|kehren kehrt kehrte gekehrt +; um|kehren kehrt kehrte gekehrt +; auf|brechen bricht brach gebrochen +;
ein|treten tritt trat getreten +; unter|stellen stellt stellte gestellt; über|setzen setzt setzte gesetzt; melken melkt melkte gemolken;
schrauben schraubt schraubte geschraubt; unterhalten unterhält unterhielt unterhalten; tun tut tat getan
"""

WOMEN = """Anna Berta Clara Dorothea Elsa Frieda Greta Hanna Ida Johanna Katharina Lena Marta Nora Ottilie Paula Rosa Sophie
Theresa Ursula Viola Wilma Emma Lotte Mathilde Ella Charlotte Helene Luise Agathe""".split()
MEN = """Anton Bruno Konrad Daniel Emil Ferdinand Georg Heinrich Jakob Karl Leo Martin Norbert Oskar Paul Richard Simon Theo
Ulrich Viktor Wilhelm August Benno Erich Friedrich Gustav Hugo Julian Kaspar Ludwig""".split()
FAMILIES = """Kornblum Steinhauer Wiesner Mühlbach Ackermann Rosenthaler Lindgruber Haselhoff Brückner Eichendorfer Vogelsang
Sommerfeld Winterberg Kesselring Silbermann Tannhofer Grünwald Bachmeier Apfelbeck Federmann Kranich Morgenstern Nagelschmidt
Seewald Hufnagel Birnbaumer Ziegenhain Lerchenau Dornfelder Papperitz""".split()
PLACES = """Lindenhof Moorbach Steinfelde Altwasser Rabental Hohenmühl Kieselbrück Grünhausen Erlenried Sandhaven Wolkenstein
Krähenwinkel Niederquell Oberseeheim Tannrode Weidenstadt Himmelsberg Kaltenbrunn Schilfhafen Mittelwiesen Fuchsberg Silbertal
Neuglashütte Seltenbach Holderstedt Windhagen Marienkoog Eichenau""".split()

MONTHS = "Januar Februar März April Mai Juni Juli August September Oktober November Dezember".split()

# Occupation: man, woman, domain in which the person is at home.
ROLES = """
Bäcker Bäckerin küche; Koch Köchin küche; Konditor Konditorin küche; Wirt Wirtin küche; Tischler Tischlerin werkstatt;
Schmied Schmiedin werkstatt; Sattler Sattlerin werkstatt; Schneider Schneiderin werkstatt; Uhrmacher Uhrmacherin maschinen;
Mechaniker Mechanikerin maschinen; Drucker Druckerin maschinen; Heizer Heizerin maschinen; Fischer Fischerin meer;
Kapitän Kapitänin meer; Lotse Lotsin meer; Leuchtturmwärter Leuchtturmwärterin meer; Lehrer Lehrerin schule;
Bibliothekar Bibliothekarin schule; Hausmeister Hausmeisterin schule; Schüler Schülerin schule; Gärtner Gärtnerin garten;
Imker Imkerin garten; Förster Försterin wald; Schäfer Schäferin hof; Tierarzt Tierärztin hof; Müller Müllerin hof;
Briefträger Briefträgerin dorf; Händler Händlerin dorf; Bürgermeister Bürgermeisterin dorf; Schaffner Schaffnerin reise;
Fotograf Fotografin reise; Wanderer Wanderin wald; Geiger Geigerin musik; Orgelbauer Orgelbauerin musik;
Chorleiter Chorleiterin musik; Dachdecker Dachdeckerin haus; Maler Malerin haus; Maurer Maurerin haus; Vermieter Vermieterin haus
"""
