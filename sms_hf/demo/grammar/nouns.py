"""
Noun tables of the demo grammar, one entry per `;`.

Columns: English singular, English plural (`-` for mass nouns), German singular, gender, German plural and, for
nouns of the n-declension, the singular form outside the nominative. Every English form stands for exactly one
German noun, so that a sentence has exactly one translation.
"""

MEN = """
man men Mann m Männer; boy boys Junge m Jungen Jungen; father fathers Vater m Väter; brother brothers Bruder m Brüder;
son sons Sohn m Söhne; grandfather grandfathers Großvater m Großväter; king kings König m Könige;
teacher teachers Lehrer m Lehrer; doctor doctors Arzt m Ärzte; student students Student m Studenten Studenten;
neighbor neighbors Nachbar m Nachbarn Nachbarn; baker bakers Bäcker m Bäcker; farmer farmers Bauer m Bauern Bauern;
policeman policemen Polizist m Polizisten Polizisten; soldier soldiers Soldat m Soldaten Soldaten;
customer customers Kunde m Kunden Kunden; friend friends Freund m Freunde; driver drivers Fahrer m Fahrer;
judge judges Richter m Richter; gardener gardeners Gärtner m Gärtner; thief thieves Dieb m Diebe;
chef chefs Koch m Köche
"""

WOMEN = """
woman women Frau f Frauen; mother mothers Mutter f Mütter; sister sisters Schwester f Schwestern;
daughter daughters Tochter f Töchter; aunt aunts Tante f Tanten; grandmother grandmothers Großmutter f Großmütter;
queen queens Königin f Königinnen; nurse nurses Krankenschwester f Krankenschwestern;
actress actresses Schauspielerin f Schauspielerinnen; witch witches Hexe f Hexen
"""

CHILDREN = """
child children Kind n Kinder; baby babies Baby n Babys
"""

ANIMALS = """
dog dogs Hund m Hunde; cat cats Katze f Katzen; horse horses Pferd n Pferde; bird birds Vogel m Vögel;
cow cows Kuh f Kühe; pig pigs Schwein n Schweine; mouse mice Maus f Mäuse; bear bears Bär m Bären Bären;
lion lions Löwe m Löwen Löwen; monkey monkeys Affe m Affen Affen; elephant elephants Elefant m Elefanten Elefanten;
snake snakes Schlange f Schlangen; duck ducks Ente f Enten; goose geese Gans f Gänse; chicken chickens Huhn n Hühner;
wolf wolves Wolf m Wölfe; fox foxes Fuchs m Füchse; frog frogs Frosch m Frösche
"""

FOOD = """
apple apples Apfel m Äpfel; bread - Brot n -; cake cakes Kuchen m Kuchen; egg eggs Ei n Eier;
potato potatoes Kartoffel f Kartoffeln; tomato tomatoes Tomate f Tomaten; cheese - Käse m -;
sausage sausages Wurst f Würste; banana bananas Banane f Bananen; strawberry strawberries Erdbeere f Erdbeeren;
soup soups Suppe f Suppen; rice - Reis m -; meat - Fleisch n -; roll rolls Brötchen n Brötchen
"""

DRINKS = """
water - Wasser n -; milk - Milch f -; coffee - Kaffee m -; tea - Tee m -; beer - Bier n -; wine - Wein m -
"""

TEXTS = """
book books Buch n Bücher; newspaper newspapers Zeitung f Zeitungen; letter letters Brief m Briefe;
magazine magazines Zeitschrift f Zeitschriften; poem poems Gedicht n Gedichte; story stories Geschichte f Geschichten;
message messages Nachricht f Nachrichten
"""

CLOTHES = """
shirt shirts Hemd n Hemden; jacket jackets Jacke f Jacken; coat coats Mantel m Mäntel; hat hats Hut m Hüte;
dress dresses Kleid n Kleider; shoe shoes Schuh m Schuhe; sock socks Socke f Socken; scarf scarves Schal m Schals
"""

OBJECTS = """
bag bags Tasche f Taschen; suitcase suitcases Koffer m Koffer; key keys Schlüssel m Schlüssel;
knife knives Messer n Messer; cup cups Tasse f Tassen; plate plates Teller m Teller; glass glasses Glas n Gläser;
pen pens Stift m Stifte; ring rings Ring m Ringe; ball balls Ball m Bälle; picture pictures Bild n Bilder;
box boxes Kiste f Kisten; flower flowers Blume f Blumen; umbrella umbrellas Regenschirm m Regenschirme;
blanket blankets Decke f Decken; ladder ladders Leiter f Leitern; gift gifts Geschenk n Geschenke;
guitar guitars Gitarre f Gitarren; clock clocks Uhr f Uhren
"""

DEVICES = """
lamp lamps Lampe f Lampen; computer computers Computer m Computer; camera cameras Kamera f Kameras;
phone phones Telefon n Telefone
"""

VEHICLES = """
car cars Auto n Autos; bicycle bicycles Fahrrad n Fahrräder; ship ships Schiff n Schiffe; boat boats Boot n Boote
"""

FURNITURE = """
table tables Tisch m Tische; chair chairs Stuhl m Stühle; bed beds Bett n Betten; sofa sofas Sofa n Sofas;
cupboard cupboards Schrank m Schränke; shelf shelves Regal n Regale
"""

PLACES = """
garden gardens Garten m Gärten; house houses Haus n Häuser; kitchen kitchens Küche f Küchen;
school schools Schule f Schulen; forest forests Wald m Wälder; park parks Park m Parks; city cities Stadt f Städte;
village villages Dorf n Dörfer; hotel hotels Hotel n Hotels; restaurant restaurants Restaurant n Restaurants;
museum museums Museum n Museen; hospital hospitals Krankenhaus n Krankenhäuser;
library libraries Bibliothek f Bibliotheken; office offices Büro n Büros; room rooms Zimmer n Zimmer;
castle castles Schloss n Schlösser; shop shops Geschäft n Geschäfte; garage garages Garage f Garagen
"""
