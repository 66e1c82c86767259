"""
Verb, adjective and adverbial tables of the demo grammar, one entry per `;`.

Verbs: English base form (`_` for a blank), English past (`-` where it looks like the present, which would make
the tense ambiguous), German infinitive with `|` after a separable prefix, third person singular without the prefix,
participle, and `s` where the perfect tense is built with *sein*.
"""

# Subjects may be animals.
VERBS_ANIMAL = """
sleep slept schlafen schläft geschlafen; wait waited warten wartet gewartet; dream dreamed träumen träumt geträumt;
swim swam schwimmen schwimmt geschwommen s; wake_up woke_up auf|wachen wacht aufgewacht s;
fall_asleep fell_asleep ein|schlafen schläft eingeschlafen s; arrive arrived an|kommen kommt angekommen s;
come_back came_back zurück|kommen kommt zurückgekommen s;
disappear disappeared verschwinden verschwindet verschwunden s; play played spielen spielt gespielt;
stay stayed bleiben bleibt geblieben s; fight fought kämpfen kämpft gekämpft
"""

VERBS_HUMAN = """
work worked arbeiten arbeitet gearbeitet; laugh laughed lachen lacht gelacht; cry cried weinen weint geweint;
smile smiled lächeln lächelt gelächelt; dance danced tanzen tanzt getanzt; sing sang singen singt gesungen;
cook cooked kochen kocht gekocht; get_up got_up auf|stehen steht aufgestanden s;
hike hiked wandern wandert gewandert s
"""

VERBS_ANIMAL_ACTION = """
see saw sehen sieht gesehen; hear heard hören hört gehört; find found finden findet gefunden;
look_for looked_for suchen sucht gesucht; lose lost verlieren verliert verloren; love loved lieben liebt geliebt;
need needed brauchen braucht gebraucht; bring_along brought_along mit|bringen bringt mitgebracht
"""

VERBS_PERSON = """
see saw sehen sieht gesehen; visit visited besuchen besucht besucht; love loved lieben liebt geliebt;
know knew kennen kennt gekannt; call called an|rufen ruft angerufen; invite invited ein|laden lädt eingeladen;
meet met treffen trifft getroffen; ask asked fragen fragt gefragt; hear heard hören hört gehört;
kiss kissed küssen küsst geküsst; understand understood verstehen versteht verstanden;
look_at looked_at an|sehen sieht angesehen; look_for looked_for suchen sucht gesucht
"""

VERBS_BEAST = """
see saw sehen sieht gesehen; feed fed füttern füttert gefüttert; catch caught fangen fängt gefangen;
hunt hunted jagen jagt gejagt; wash washed waschen wäscht gewaschen; love loved lieben liebt geliebt;
draw drew zeichnen zeichnet gezeichnet; look_for looked_for suchen sucht gesucht; hear heard hören hört gehört
"""

VERBS_FOOD = """
eat ate essen isst gegessen; buy bought kaufen kauft gekauft; order ordered bestellen bestellt bestellt;
bring_along brought_along mit|bringen bringt mitgebracht
"""

VERBS_DRINK = """
drink drank trinken trinkt getrunken; order ordered bestellen bestellt bestellt; buy bought kaufen kauft gekauft
"""

VERBS_TEXT = """
read - lesen liest gelesen; write wrote schreiben schreibt geschrieben;
translate translated übersetzen übersetzt übersetzt; describe described beschreiben beschreibt beschrieben;
forget forgot vergessen vergisst vergessen
"""

VERBS_CLOTHES = """
wear wore tragen trägt getragen; wash washed waschen wäscht gewaschen;
try_on tried_on an|probieren probiert anprobiert; take_off took_off aus|ziehen zieht ausgezogen
"""

VERBS_DEVICE = """
turn_on turned_on ein|schalten schaltet eingeschaltet; turn_off turned_off aus|schalten schaltet ausgeschaltet;
use used benutzen benutzt benutzt; repair repaired reparieren repariert repariert
"""

VERBS_VEHICLE = """
repair repaired reparieren repariert repariert; rent rented mieten mietet gemietet;
wash washed waschen wäscht gewaschen; sell sold verkaufen verkauft verkauft
"""

VERBS_THING = """
buy bought kaufen kauft gekauft; sell sold verkaufen verkauft verkauft; find found finden findet gefunden;
lose lost verlieren verliert verloren; need needed brauchen braucht gebraucht; take took nehmen nimmt genommen;
steal stole stehlen stiehlt gestohlen; hide hid verstecken versteckt versteckt;
throw_away threw_away weg|werfen wirft weggeworfen; pick_up picked_up ab|holen holt abgeholt;
pack packed ein|packen packt eingepackt; unpack unpacked aus|packen packt ausgepackt;
forget forgot vergessen vergisst vergessen; keep kept behalten behält behalten;
give_back gave_back zurück|geben gibt zurückgegeben; carry carried tragen trägt getragen; see saw sehen sieht gesehen;
look_for looked_for suchen sucht gesucht; bring_along brought_along mit|bringen bringt mitgebracht
"""

VERBS_DATIVE = """
help helped helfen hilft geholfen; thank thanked danken dankt gedankt; follow followed folgen folgt gefolgt s;
trust trusted vertrauen vertraut vertraut; answer answered antworten antwortet geantwortet;
forgive forgave verzeihen verzeiht verziehen; listen_to listened_to zu|hören hört zugehört
"""

VERBS_GIVING = """
give gave geben gibt gegeben; show showed zeigen zeigt gezeigt; send sent schicken schickt geschickt;
lend lent leihen leiht geliehen; offer offered an|bieten bietet angeboten; bring brought bringen bringt gebracht;
buy bought kaufen kauft gekauft
"""

VERBS_MOTION = """
go went gehen geht gegangen s; run ran rennen rennt gerannt s; come came kommen kommt gekommen s;
walk walked laufen läuft gelaufen s; jump jumped springen springt gesprungen s
"""

VERBS_POSITION = """
sit sat sitzen sitzt gesessen; stand stood stehen steht gestanden; lie lay liegen liegt gelegen
"""

VERBS_PLACEMENT = """
put - legen legt gelegt; place placed stellen stellt gestellt; throw threw werfen wirft geworfen
"""

VERBS_THAT = """
say said sagen sagt gesagt; think thought denken denkt gedacht; believe believed glauben glaubt geglaubt;
know knew wissen weiß gewusst; hope hoped hoffen hofft gehofft; claim claimed behaupten behauptet behauptet;
notice noticed bemerken bemerkt bemerkt; write wrote schreiben schreibt geschrieben
"""

VERBS_TO = """
try tried versuchen versucht versucht; forget forgot vergessen vergisst vergessen; plan planned planen plant geplant;
hope hoped hoffen hofft gehofft
"""

FIRST_PERSON = {"wissen": "weiß"}

# Adjectives: English, German, then `-` or the German stem before an ending, then both comparatives if used.
ADJ_LIVING = """
tired müde müd; young jung - younger jünger; old alt - older älter; sad traurig - sadder trauriger;
small klein - smaller kleiner; big groß - bigger größer; hungry hungrig; thirsty durstig; sick krank; healthy gesund;
lazy faul - lazier fauler; strong stark - stronger stärker; brave mutig - braver mutiger; famous berühmt;
nice nett - nicer netter; angry wütend; beautiful schön; slow langsam - slower langsamer;
fast schnell - faster schneller; dangerous gefährlich
"""

ADJ_HUMAN = """
rich reich - richer reicher; poor arm - poorer ärmer; happy glücklich - happier glücklicher;
friendly freundlich - friendlier freundlicher; honest ehrlich; young jung - younger jünger; old alt - older älter;
tired müde müd
"""

ADJ_THING = """
red rot; blue blau; green grün; yellow gelb; black schwarz; white weiß; brown braun; new neu - newer neuer;
old alt - older älter; expensive teuer teur; cheap billig - cheaper billiger; heavy schwer - heavier schwerer;
broken kaputt; clean sauber; dirty schmutzig - dirtier schmutziger; dark dunkel dunkl; small klein - smaller kleiner;
big groß - bigger größer; beautiful schön; ugly hässlich - uglier hässlicher
"""

ADJ_TEXT = """
interesting interessant; boring langweilig; long lang - longer länger; short kurz - shorter kürzer; important wichtig;
new neu - newer neuer; old alt - older älter
"""

ADJ_FOOD = """
fresh frisch - fresher frischer; sweet süß - sweeter süßer; delicious lecker; cold kalt - colder kälter;
warm warm - warmer wärmer; cheap billig - cheaper billiger; expensive teuer teur
"""

ADJ_PLACE = """
big groß - bigger größer; small klein - smaller kleiner; old alt - older älter; new neu - newer neuer;
dark dunkel dunkl; beautiful schön; quiet ruhig - quieter ruhiger; empty leer; famous berühmt
"""

# Adverbials: English = German.
TIMES_PRESENT = """
today = heute; now = jetzt; every day = jeden Tag; every morning = jeden Morgen; every week = jede Woche;
in the evening = am Abend; on Monday = am Montag; on Friday = am Freitag; on Sunday = am Sonntag;
in winter = im Winter; in summer = im Sommer; after work = nach der Arbeit
"""
TIMES_PAST = """
yesterday = gestern; last week = letzte Woche; last year = letztes Jahr; two days ago = vor zwei Tagen;
a year ago = vor einem Jahr; this morning = heute Morgen; last month = letzten Monat; on Monday = am Montag;
on Sunday = am Sonntag
"""
TIMES_FUTURE = """
tomorrow = morgen; next week = nächste Woche; next year = nächstes Jahr; soon = bald; in an hour = in einer Stunde;
next month = nächsten Monat; on Friday = am Freitag; today = heute; tomorrow evening = morgen Abend
"""
FREQUENCIES = "often = oft; always = immer; never = nie; sometimes = manchmal; rarely = selten"
