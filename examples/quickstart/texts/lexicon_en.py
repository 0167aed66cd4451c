"""English words of the quickstart corpus: nouns by class, adjectives by class, irregular verbs and plurals, names."""

NOUNS = """
tool: hammer, saw, chisel, file, axe, drill, plane, spade, rake, broom, ladder, shovel, brush, pair of scissors, penknife, trowel, clamp,
  tape measure, spirit level, wrench, crowbar
vessel: basket, bucket, crate, barrel, jug, bottle, suitcase, sack, bag, box, trunk, can, rucksack, carton, tub, pouch, chest, hamper
dish_ware: pot, bowl, frying pan, kettle, plate, cup, mug, baking tin, sieve, casserole, teapot, saucepan
furniture: table, chair, bench, cupboard, bed, armchair, shelf, stool, sofa, chest of drawers, desk, rocking chair, cradle, sideboard, bookcase
dish: soup, cake, stew, roast, pie, omelette, salad, pudding, pancake, apple tart, sauce, broth, casserole, trifle, sponge cake, curry
produce: onion, potato, carrot, apple, pear, egg, tomato, cucumber, lemon, plum, walnut, cherry, bean, mushroom, pumpkin, turnip, quince, apricot,
  leek, parsnip
supply: flour, sugar, salt, butter, milk, honey, oil, rice, cheese, yeast, cream, cinnamon, vinegar, mustard, oatmeal, treacle
beast: dog, cat, horse, cow, goat, sheep, goose, duck, donkey, rabbit, calf, hen, piglet, tomcat, lamb, foal, pony, cockerel
wild: fox, hedgehog, stork, raven, owl, swan, swallow, hare, badger, beaver, deer, woodpecker, frog, squirrel, marten, crane, blackbird, bat,
  otter, heron
plant: rose, tulip, shrub, hedge, oak, lime tree, birch, fir, sunflower, fern, thistle, willow, chestnut tree, violet, apple tree, carnation,
  cherry tree, ivy, elder bush, foxglove
building: house, church, school, mill, barn, tower, town hall, station, bakery, shop, inn, museum, library, castle, factory, cottage, stable,
  market hall, chapel, post office
room: kitchen, cellar, parlour, bedroom, hallway, pantry, garage, office, hall, workshop, attic, laundry
land: forest, valley, garden, park, gorge, bay, lane, town, village, marsh, orchard, meadow, copse
water: lake, river, brook, canal, pond, harbour, well, beach, waterfall, reservoir
height: mountain, hill, island, pasture, dune, bridge, clearing, ridge, cliff, headland
vehicle: wagon, bicycle, train, bus, tractor, carriage, tram, lorry, sledge, ferry, handcart, delivery van, cable car
boat: boat, ship, cutter, rowing boat, sailing boat, freighter, steamer, tug, barge, pilot boat
gear: sail, anchor, mast, rudder, net, rope, fender, compass, lantern, chart, telescope, flag, buoy
machine: grandfather clock, steam engine, sewing machine, pump, printing press, coffee mill, typewriter, motor, stove, radio, lathe, loom, winch,
  lawnmower, generator, weighing scale, music box, alarm clock
part: screw, spring, cogwheel, chain, belt, lever, valve, cable, switch, pipe, piston, gasket, handle, crank, bearing, pointer, bolt
clothing: coat, hat, scarf, shirt, dress, jacket, cap, apron, jumper, waistcoat, skirt, cloak, raincoat
paper: letter, book, newspaper, postcard, notebook, list, note, map, diary, bill, invitation, drawing, timetable, dictionary, poem
schooling: blackboard, pencil, ruler, exercise book, globe, fountain pen, pair of compasses, pencil case, abacus, microscope, satchel
instrument: violin, piano, flute, drum, guitar, harp, trumpet, accordion, organ, cello, clarinet, horn
piece: waltz, song, march, melody, sonata, lullaby, dance, hymn
thing: key, lamp, candle, picture, vase, spoon, cushion, blanket, umbrella, ball, doll, kite, coin, button, bell, mirror, carpet, medal, comb,
  camera, whistle
event: party, concert, outing, wedding, fair, exam, birthday, parade, contest, exhibition, meeting, play
weather: rain, storm, fog, hail, frost, heat, snow, wind
human: neighbour, farmer, child, guest, stranger, trader, traveller, boy, girl, apprentice, mayor, postman, customer, conductor, shop assistant,
  colleague, doctor, innkeeper, pupil, sailor, policeman
"""

PLURALS = {
    "pair of scissors": "pairs of scissors", "chest of drawers": "chests of drawers", "pair of compasses": "pairs of compasses",
    "shelf": "shelves", "scarf": "scarves", "sheep": "sheep", "goose": "geese", "calf": "calves", "deer": "deer", "child": "children", "penknife": "penknives",
    "postman": "postmen", "policeman": "policemen", "potato": "potatoes", "tomato": "tomatoes", "tape measure": "tape measures",
    "piano": "pianos", "radio": "radios", "cello": "cellos",
}  # fmt: skip

COLOURS = "red blue green yellow brown grey white black"

ADJECTIVES = {
    "tool": "old new heavy light rusty sharp blunt handy worn borrowed long short sturdy",
    "vessel": "empty full heavy light large small old wooden woven dusty roomy " + COLOURS,
    "dish_ware": "large small clean old deep shallow hot shiny enamelled dented cracked",
    "furniture": "old comfortable wobbly wide narrow low antique heavy scratched polished dark elegant",
    "dish": "warm delicious sweet salty juicy spicy fragrant simple light hearty sour cold ordinary",
    "produce": "ripe fresh small large sweet juicy firm wrinkled washed round soft",
    "supply": "fresh good fine expensive local",
    "beast": "old young tame curious hungry tired spotted brown white black grey thin stubborn healthy",
    "wild": "shy young old nimble watchful hungry small unusual cautious quiet",
    "plant": "old young tall splendid withered flowering strong gnarled delicate wild crooked",
    "building": "old new abandoned tall low splendid famous ruined small large plain modern crooked quiet",
    "room": "narrow bright dark cool warm empty untidy spacious low dusty cosy clean",
    "land": "wide quiet green shady lonely remote beautiful wild misty sunny windy",
    "water": "deep clear cold wide shallow calm muddy remote narrow",
    "height": "steep green lonely sunny windy high bare gentle distant famous",
    "vehicle": "old new fast slow crowded empty rusty noisy comfortable rattling late dirty green yellow",
    "boat": "old new fast small large heavy seaworthy slim tiny well-kept",
    "gear": "old new torn heavy wet rusty narrow large precious useful patched wooden",
    "machine": "old new loud quiet heavy broken dusty reliable complicated delicate modern expensive outdated",
    "part": "loose bent rusty small short matching missing broken new tiny worn",
    "clothing": "warm thin thick patched elegant wet woollen new old colourful grey plain striped dark",
    "paper": "long short thick thin yellowed secret important crumpled old new illegible friendly strange",
    "schooling": "new broken clean large small blunt precious colourful borrowed practical old",
    "instrument": "old untuned precious new small shiny home-made borrowed Italian simple",
    "piece": "slow cheerful sad old famous difficult short solemn forgotten lively",
    "thing": "old new small large beautiful broken precious simple colourful silver forgotten strange cheap expensive "
    + COLOURS,
    "event": "big small long beautiful unforgettable important cheerful noisy rainy successful annual",
    "weather": "heavy sudden persistent icy unusual",
    "human": "friendly young old polite patient impatient attentive hard-working tired cheerful curious silent clever honest",
}

IRREGULAR = """
bake baked baked; beat beat beaten; become became become; begin began begun; bend bent bent; bind bound bound; bite bit bitten; blow blew blown; break broke broken;
bring brought brought; build built built; buy bought bought; catch caught caught; choose chose chosen; climb climbed climbed; come came come;
cut cut cut; dig dug dug; do did done; draw drew drawn; drink drank drunk; drive drove driven; eat ate eaten; fall fell fallen; feed fed fed;
feel felt felt; fight fought fought; find found found; fly flew flown; forget forgot forgotten; get got got; give gave given; go went gone;
grind ground ground; grow grew grown; hang hung hung; have had had; hear heard heard; hide hid hidden; hit hit hit; hold held held; keep kept kept;
know knew known; lay laid laid; lead led led; learn learned learned; leave left left; lend lent lent; let let let; lie lay lain; light lit lit; lose lost lost;
make made made; mean meant meant; meet met met; mow mowed mown; pay paid paid; put put put; read read read; repay repaid repaid; ride rode ridden;
ring rang rung; rise rose risen; row rowed rowed; run ran run; saw sawed sawn; say said said; see saw seen; sell sold sold; send sent sent;
set set set; sew sewed sewn; shake shook shaken; shear sheared shorn; shine shone shone; show showed shown; shut shut shut; sing sang sung; sit sat sat;
sleep slept slept; sow sowed sown; speak spoke spoken; spend spent spent; stand stood stood; steal stole stolen; sweep swept swept; swim swam swum; take took taken;
teach taught taught; tell told told; think thought thought; throw threw thrown; understand understood understood; wake woke woken; wear wore worn;
win won won; wind wound wound; write wrote written; stop stopped stopped; chop chopped chopped; stir stirred stirred; swap swapped swapped; plan planned planned; wrap wrapped wrapped; pin pinned pinned; slip slipped slipped;
tap tapped tapped; dig dug dug; chat chatted chatted; hum hummed hummed; pat patted patted; trim trimmed trimmed; drop dropped dropped; fit fitted fitted
"""
DOUBLING = "stop plan wrap chop stir swap pin slip tap dig chat hum pat trim drop fit cut put set get run sit swim let shut begin forget hit win".split()

WOMEN = """Alice Beatrice Clara Dorothy Edith Florence Grace Hazel Ivy Jane Kate Lucy Margaret Nancy Olive Penny Rose Susan Tilda Violet Winifred
Abigail Bridget Cecily Daphne Ellen Flora Harriet Martha Phoebe""".split()
MEN = """Albert Bernard Charles David Edward Frank George Henry Isaac Jack Kenneth Lewis Martin Noel Oliver Peter Quentin Robert Samuel Thomas
Victor Walter Arthur Benjamin Cuthbert Duncan Edmund Gilbert Hector Jasper""".split()
FAMILIES = """Appleby Barleycorn Cartwheel Dunmore Eastwood Fairweather Greenhalgh Hollybush Inglewood Jessop Kettlewell Larkfield Merriweather
Nettlefold Oakenshaw Pennywhistle Quickley Ravenscroft Silverdale Thistlewood Underhill Vane Whitlock Yarrow Brackenbury Coppergate Dovecote
Fennimore Hazelgrove Longacre""".split()
PLACES = """Ashcombe Brindle Cobblewick Dunharbour Elmsworth Fernley Gullhaven Hartsmere Ivycombe-on-Sea Juniper_Hill Kingsmarsh Littlebrook Merrowdown Northpool
Oakhollow Pebbleton Quarrystone Ravensford Saltmarsh Thornby_Green Upper_Wick Viaduct_End Willowmere Yarrowdale Stonebeck Highmoor Larkholm Tidewater""".split()
MONTHS = "January February March April May June July August September October November December".split()

ROLES = """
baker kitchen; cook kitchen; pastry cook kitchen; innkeeper kitchen; carpenter workshop; blacksmith workshop; saddler workshop; tailor workshop;
clockmaker machines; mechanic machines; printer machines; engine driver machines; sea captain sea; pilot sea; lighthouse keeper sea; boatbuilder sea;
teacher school; librarian school; caretaker school; tutor school; gardener garden; beekeeper garden; florist garden; forester woods; shepherd farm; vet farm; miller farm;
letter carrier town; grocer town; mayor town; conductor travel; photographer travel; guide woods; botanist woods; violinist music; organ builder music;
choir leader music; roofer house; painter house; bricklayer house; landlord house
"""
